//! The atomics and the memory that a ring stands on: mapped from a memfd, or modelled by loom.

#[cfg(loom)]
mod modelled {
    pub(crate) use loom::sync::atomic::{AtomicU64, Ordering, fence};
    pub(crate) type Memory = loom::sync::Arc<Vec<AtomicU64>>;
}

#[cfg(not(loom))]
mod modelled {
    pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
    pub(crate) type Memory = std::sync::Arc<crate::memory::Mapping>;
}

pub(crate) use modelled::{AtomicU64, Memory, Ordering, fence};

/// Words of the header before the contents: a page of its own, or as little as a model needs.
pub(crate) const HEADER_WORDS: usize = if cfg!(loom) { 64 } else { 512 };
