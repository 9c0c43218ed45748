//! The built daemon between real servers. Each family shares a pair of clusters, each
//! scenario has a database of its own on both; rows are compared as text.

mod beside;
mod binary;
mod conflicts;
mod copy;
mod counter;
mod deferred;
mod disk;
mod endpoints;
mod existing_rows;
mod failover;
mod follow;
mod full_rows;
mod gaps;
mod identity;
mod indexes;
mod lost_slots;
mod mapping;
mod moving;
mod names;
mod old_books;
mod plain_role;
mod quarantine;
mod rebase;
mod restart;
mod service;
mod skips;
mod slots;
mod source_untouched;
mod standby;
mod streamed;
mod timelines;
mod types;
mod verify;
