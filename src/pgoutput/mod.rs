//! Bytes of the stream to messages; pure.
//!
//! ```text
//!  XLogData payload ─▶ Decoder ─▶ Message
//! ```
//!
//! One payload is one message, and every byte of it is accounted for: what is
//! unknown, short, long or out of place is an error that names tag and offset,
//! never a message that was skipped or guessed. Protocol versions 1 to 4 (manual,
//! "Logical Replication Message Formats"; the server's side is `proto.c`).

#![deny(clippy::indexing_slicing)]

mod decode;
#[cfg(test)]
pub(crate) mod encode;
mod encode_kept;
mod message;
#[cfg(test)]
pub(crate) mod fuzz;
#[cfg(test)]
mod properties;
mod reader;
#[cfg(test)]
mod tables;

pub use decode::{Decoder, Streaming};
pub use encode_kept::{encode_change, encode_relation};
pub use message::{Message, Payload};
pub use reader::{DecodeError, DecodeErrorKind};
