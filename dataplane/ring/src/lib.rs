//! Shared memory between the dataplane and the control process: an [`Attachment`](AttachmentFds) of three rings for
//! each worker and three regions, each on a sealed memfd of its own.
//!
//! The supervisor makes it ([`AttachmentFds::create`]) and gives each child its half ([`AttachmentFds::give`]); a
//! child finds the descriptors named in [`ENVIRONMENT`]. When one child has died, the supervisor makes the next
//! attachment ([`AttachmentFds::successor`]), starts that child anew with it and hands it to the other one over a socket
//! ([`Handover`] → [`Heir`]). Within an attachment
//! - commands flow from [`ControlSide`] to [`DataplaneSide`], urgent and noise events back, on single-producer
//!   single-consumer [`ring`]s of fixed-size records with an eventfd as doorbell, rung only for a consumer that sleeps;
//! - the dataplane writes what is hot of each SA ([`Words`] for its engine; what it carried, by [`ActivityWriter`]) and its
//!   named counters ([`CounterWriter`]); control maps both read-only.
//!
//! A [`capture`] has rings of its own, from the workers to `spindle capture`, which asks for them over a socket.
//!
//! What control keeps for the control process after it lies in a region of its own ([`KeptFd`] → [`Kept`]).
//!
//! All of this memory is only ever touched as atomic words, so that whatever the other process writes, at whatever
//! moment, is a wrong value at worst; an impossible index ends the attachment ([`Broken`]).

#![cfg_attr(loom, allow(dead_code))] // the model checks know no files

#[cfg(not(loom))]
mod attachment;
pub mod capture;
#[cfg(not(loom))]
pub mod capture_socket;
#[cfg(not(loom))]
mod descriptors;
#[cfg(not(loom))]
mod handover;
#[cfg(not(loom))]
mod kept;
#[cfg(not(loom))]
mod memory;
#[cfg(not(loom))]
mod region;
pub mod ring;
mod sync;

#[cfg(not(loom))]
pub use attachment::{
    AttachError, AttachmentFds, COMMAND_SLOTS, ControlRings, ControlSide, DataplaneSide, ENVIRONMENT,
    EVENT_SLOTS, LAYOUT, MAX_WORKERS, Side, WorkerRings,
};
#[cfg(not(loom))]
pub use handover::{HANDOVER_ENVIRONMENT, Handover, Heir};
#[cfg(not(loom))]
pub use kept::{Full, KEPT_ENVIRONMENT, KEPT_LAYOUT, Kept, KeptFd, KeptKey, KeptRecord};
#[cfg(not(loom))]
pub use region::{
    ActivityReader, ActivityWriter, CounterReader, CounterWriter, MAX_COUNTERS, NAME_LENGTH, Words,
};
pub use ring::{Bell, Broken, Consumer, Producer, Record};
