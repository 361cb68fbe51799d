//! A hint to the CPU to fetch memory before it is needed.

/// Octets of a cache line.
const LINE: usize = 64;

/// Asks for the cache lines in which `value` lies. Changes nothing but timing.
#[inline(always)]
pub fn prefetch<T: ?Sized>(value: &T) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        let first = std::ptr::from_ref(value).cast::<i8>();
        let size = size_of_val(value);
        // SAFETY: SSE is part of x86_64; a prefetch reads nothing architecturally and faults on no address.
        let fetch = |offset| unsafe { _mm_prefetch::<_MM_HINT_T0>(first.wrapping_add(offset)) };
        for offset in (0..size).step_by(LINE) {
            fetch(offset);
        }
        // What does not begin with a line may end in one more.
        if align_of_val(value) < LINE {
            fetch(size.saturating_sub(1));
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = value;
}
