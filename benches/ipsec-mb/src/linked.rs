//! The calls.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ffi::{CStr, c_char, c_int, c_void};
use std::ptr;

type Expand = unsafe extern "C" fn(*const c_void, *mut c_void);
type Crypt = unsafe extern "C" fn(
    *const c_void,
    *mut c_void,
    *mut u8,
    *const u8,
    u64,
    *const u8,
    *const u8,
    u64,
    *mut u8,
    u64,
);

unsafe extern "C" {
    fn spindle_manager() -> *mut c_void;
    fn spindle_manager_free(manager: *mut c_void);
    fn spindle_functions(
        manager: *mut c_void,
        length: usize,
        expand: *mut Option<Expand>,
        seal: *mut Option<Crypt>,
        open: *mut Option<Crypt>,
        key: *mut usize,
        context: *mut usize,
    ) -> c_int;
    fn imb_get_version_str() -> *const c_char;
}

/// The library's version; `None` if it isn't linked.
pub fn version() -> Option<String> {
    // SAFETY: takes nothing and returns a static string.
    let version = unsafe { CStr::from_ptr(imb_get_version_str()) };
    Some(version.to_string_lossy().into_owned())
}

/// Zeroed memory for one of the library's structures.
#[derive(Debug)]
struct Memory(*mut c_void, Layout);

impl Memory {
    fn new(size: usize) -> Memory {
        let layout = Layout::from_size_align(size.max(1), 64).expect("a small structure");
        // SAFETY: the size is not zero.
        let address = unsafe { alloc_zeroed(layout) };
        if address.is_null() {
            handle_alloc_error(layout);
        }
        Memory(address.cast(), layout)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout, and freed once.
        unsafe { dealloc(self.0.cast(), self.1) };
    }
}

/// A key.
#[derive(Debug)]
pub struct Gcm {
    key: Memory,
    context: Memory,
    seal: Crypt,
    open: Crypt,
}

impl Gcm {
    /// Expands a key of 16, 24 or 32 octets.
    pub fn new(key: &[u8]) -> Option<Gcm> {
        let (mut expand, mut seal, mut open, mut sizes) = (None, None, None, (0, 0));
        // SAFETY: takes nothing; what it returns is freed below.
        let manager = unsafe { spindle_manager() };
        if manager.is_null() {
            return None;
        }
        // SAFETY: the manager is alive, and all the others are places to write to.
        let known = unsafe {
            spindle_functions(
                manager,
                key.len(),
                &mut expand,
                &mut seal,
                &mut open,
                &mut sizes.0,
                &mut sizes.1,
            )
        };
        // SAFETY: made above, freed once. The functions are the library's, they outlive the manager.
        unsafe { spindle_manager_free(manager) };
        if known == 0 {
            return None;
        }
        let (expand, seal, open): (Expand, _, _) = (expand?, seal?, open?);
        let gcm = Gcm { key: Memory::new(sizes.0), context: Memory::new(sizes.1), seal, open };
        // SAFETY: `key` is as long as the function was chosen for, and the structure as large as the library says.
        unsafe { expand(key.as_ptr().cast(), gcm.key.0) };
        Some(gcm)
    }

    /// Encrypts in place and writes the tag.
    #[inline]
    pub fn seal(&mut self, nonce: &[u8; 12], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; 16]) {
        self.call(self.seal, nonce, aad, buffer, tag);
    }

    /// Decrypts in place and compares the tag, as the library leaves to its caller.
    #[inline]
    pub fn open(&mut self, nonce: &[u8; 12], aad: &[u8], buffer: &mut [u8], tag: &[u8; 16]) -> bool {
        let mut computed = [0; 16];
        self.call(self.open, nonce, aad, buffer, &mut computed);
        u128::from_ne_bytes(computed) == u128::from_ne_bytes(*tag)
    }

    #[inline]
    fn call(&mut self, function: Crypt, nonce: &[u8; 12], aad: &[u8], buffer: &mut [u8], tag: &mut [u8; 16]) {
        let at = buffer.as_mut_ptr();
        let aad_at = if aad.is_empty() { ptr::null() } else { aad.as_ptr() };
        // SAFETY: every pointer is valid for its length; the library allows source and destination to be the same;
        // `&mut self` keeps the context for this call.
        unsafe {
            function(
                self.key.0,
                self.context.0,
                at,
                at.cast_const(),
                buffer.len() as u64,
                nonce.as_ptr(),
                aad_at,
                aad.len() as u64,
                tag.as_mut_ptr(),
                16,
            );
        }
    }
}
