//! Two throw-away clusters with a live workload: the main job, to look at.

pub mod cluster;
pub mod crm;
