//! Mapping.
mod settings;
pub use settings::{
    ConflictPolicy, ExistingRows, ExtraRows, ParseConflictPolicyError, ParsePatternError, Settings,
    TablePattern, TableRule,
};
