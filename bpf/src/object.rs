//! An object of `build.rs` in the kernel: its maps made, its XDP programs loaded.
//!
//! `aya` reads the object, links programs with maps and holds the maps. Its own loader is not used here: at each start
//! it parses all of the kernel's types (5 MB) for relocations that our programs don't have and probes the kernel for
//! features that they don't use, which takes most of the time until a gateway is ready.

use aya::maps::{Map, MapData, MapError};
use aya_obj::generated::bpf_insn;
use std::collections::{HashMap, HashSet};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_XDP: u32 = 37;
/// Octets of the verifier's explanation at most.
const EXPLANATION: usize = 64 << 10;

/// Why an object cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It is not what clang builds.
    #[error("it cannot be read: {0}")]
    Object(String),
    /// The kernel refused a map.
    #[error(transparent)]
    Map(#[from] MapError),
    /// The kernel refused a program.
    #[error("the program {program}: {error}{explanation}")]
    Program {
        /// Its name.
        program: String,
        /// The kernel's word.
        error: io::Error,
        /// The verifier's last words, if it had any.
        explanation: String,
    },
}

/// An object whose programs and maps are in the kernel.
pub(crate) struct Loaded {
    maps: HashMap<String, Map>,
    programs: HashMap<String, Program>,
}

impl Loaded {
    /// Makes the maps, of which some are given another number of entries, and loads the programs.
    pub(crate) fn new(object: &[u8], entries: &[(&str, u32)]) -> Result<Loaded, LoadError> {
        let unreadable = |error: &dyn std::fmt::Display| LoadError::Object(error.to_string());
        let mut object = aya_obj::Object::parse(object).map_err(|e| unreadable(&e))?;
        let definitions: Vec<(String, aya_obj::Map)> = object.maps.drain().collect();
        let mut made = Vec::new();
        for (name, definition) in &definitions {
            let most = entries.iter().find(|(of, _)| of == name).map_or(definition.max_entries(), |e| e.1);
            let (kind, flags) = (definition.map_type(), definition.map_flags());
            let (key, value) = (definition.key_size(), definition.value_size());
            let plain = aya_obj::Map::new_from_params(kind, key, value, most, flags);
            made.push(MapData::create(plain, name, None)?);
        }
        let text: HashSet<usize> = object.functions.keys().map(|(section, _)| *section).collect();
        let known = definitions.iter().zip(&made);
        let known = known.map(|((name, map), data)| (name.as_str(), data.fd().as_fd().as_raw_fd(), map));
        object.relocate_maps(known, &text).map_err(|e| unreadable(&e))?;
        object.relocate_calls(&text).map_err(|e| unreadable(&e))?;
        let mut programs = HashMap::new();
        for (name, program) in &object.programs {
            let function = object.functions.get(&program.function_key());
            let code = function.ok_or_else(|| unreadable(&format_args!("{name} has no code")))?;
            programs.insert(name.clone(), Program::load(name, &code.instructions, &program.license)?);
        }
        let names = definitions.into_iter().map(|(name, _)| name);
        let maps = names.zip(made).map(|(name, data)| Ok((name, Map::from_map_data(data)?)));
        Ok(Loaded { maps: maps.collect::<Result<_, MapError>>()?, programs })
    }

    /// A map, once.
    pub(crate) fn take_map(&mut self, name: &str) -> Option<Map> {
        self.maps.remove(name)
    }

    /// A map that was not taken.
    pub(crate) fn map_mut(&mut self, name: &str) -> Option<&mut Map> {
        self.maps.get_mut(name)
    }

    /// A program of the object.
    pub(crate) fn program(&self, name: &str) -> Option<&Program> {
        self.programs.get(name)
    }
}

/// How XDP attaches.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mode {
    /// In the driver.
    Native,
    /// In the kernel's stack, for drivers without XDP; slower.
    Generic,
}

/// An XDP program that the kernel has verified.
pub(crate) struct Program(OwnedFd);

impl Program {
    fn load(name: &str, code: &[bpf_insn], license: &CStr) -> Result<Program, LoadError> {
        /// What `union bpf_attr` has for BPF_PROG_LOAD.
        #[repr(C)]
        #[derive(Default)]
        struct Load {
            kind: u32,
            instruction_count: u32,
            instructions: u64,
            license: u64,
            log_level: u32,
            log_size: u32,
            log: u64,
            kernel_version: u32,
            flags: u32,
            name: [u8; 16],
            interface: u32,
            expected_attach_type: u32,
        }
        let mut load = Load {
            kind: BPF_PROG_TYPE_XDP,
            instruction_count: code.len() as u32,
            instructions: code.as_ptr() as u64,
            license: license.as_ptr() as u64,
            expected_attach_type: BPF_XDP,
            ..Load::default()
        };
        for (to, from) in load.name.iter_mut().take(15).zip(name.bytes()) {
            *to = from;
        }
        // SAFETY: the kernel reads the instructions and the license, which live as long as this call.
        let refused = match unsafe { bpf(BPF_PROG_LOAD, &mut load) } {
            Ok(program) => return Ok(Program(program)),
            Err(error) => error,
        };
        // Once more, for the verifier's explanation.
        let mut log = vec![0_u8; EXPLANATION];
        (load.log_level, load.log_size, load.log) = (1, log.len() as u32, log.as_mut_ptr() as u64);
        // SAFETY: as above, and the kernel writes at most `log_size` octets to `log`.
        match unsafe { bpf(BPF_PROG_LOAD, &mut load) } {
            Ok(program) => Ok(Program(program)),
            Err(_) => {
                let log = String::from_utf8_lossy(log.split(|octet| *octet == 0).next().unwrap_or_default());
                let explanation = log.lines().rev().find(|line| !line.starts_with("processed "));
                let explanation = explanation.map_or(String::new(), |line| format!("; {}", line.trim()));
                Err(LoadError::Program { program: name.to_owned(), error: refused, explanation })
            }
        }
    }

    /// Attaches to the interface with this index, until the link is dropped.
    pub(crate) fn attach(&self, interface: u32, mode: Mode) -> io::Result<Link> {
        /// What `union bpf_attr` has for BPF_LINK_CREATE.
        #[repr(C)]
        struct Create {
            program: u32,
            interface: u32,
            attach_type: u32,
            flags: u32,
        }
        const XDP_FLAGS_SKB_MODE: u32 = 1 << 1;
        const XDP_FLAGS_DRV_MODE: u32 = 1 << 2;
        let flags = match mode {
            Mode::Native => XDP_FLAGS_DRV_MODE,
            Mode::Generic => XDP_FLAGS_SKB_MODE,
        };
        let program = self.0.as_raw_fd() as u32;
        let mut create = Create { program, interface, attach_type: BPF_XDP, flags };
        // SAFETY: it holds integers only.
        unsafe { bpf(BPF_LINK_CREATE, &mut create) }.map(|link| Link { _descriptor: link })
    }

    /// Runs it on a packet: its verdict.
    pub(crate) fn test_run(&self, packet: &[u8]) -> io::Result<u32> {
        /// What `union bpf_attr` has for BPF_PROG_TEST_RUN.
        #[repr(C)]
        #[derive(Default)]
        struct Run {
            program: u32,
            verdict: u32,
            input_size: u32,
            output_size: u32,
            input: u64,
            output: u64,
            repeat: u32,
            duration: u32,
        }
        const BPF_PROG_TEST_RUN: libc::c_int = 10;
        let mut run = Run {
            program: self.0.as_raw_fd() as u32,
            input_size: packet.len() as u32,
            input: packet.as_ptr() as u64,
            ..Run::default()
        };
        // SAFETY: the kernel reads `input_size` octets of the packet, and is given no place to write to.
        let result = unsafe { call(BPF_PROG_TEST_RUN, &mut run) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(run.verdict) }
    }
}

/// An attachment; it ends with this descriptor, so also with the process.
pub(crate) struct Link {
    _descriptor: OwnedFd,
}

/// A command that gives a new descriptor (close-on-exec, as all of bpf(2)'s are).
///
/// # Safety
/// `attributes` is what the kernel expects of this command, and its pointers hold what they promise.
unsafe fn bpf<T>(command: libc::c_int, attributes: &mut T) -> io::Result<OwnedFd> {
    // SAFETY: the caller's promise.
    let result = unsafe { call(command, attributes) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel just gave it to us.
    Ok(unsafe { OwnedFd::from_raw_fd(result as i32) })
}

/// bpf(2).
///
/// # Safety
/// As for [`bpf`].
unsafe fn call<T>(command: libc::c_int, attributes: &mut T) -> libc::c_long {
    // SAFETY: the caller's promise; the kernel is told the size of what it may touch.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes as *mut T, size_of::<T>() as u32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_the_verifier_refuses_comes_with_its_explanation() {
        // exit, with no verdict in r0.
        let exit: bpf_insn = [0x95_u64].map(|code| {
            // SAFETY: an instruction is 64 bits of which any value is valid.
            unsafe { std::mem::transmute::<u64, bpf_insn>(code) }
        })[0];
        let error = Program::load("none", &[exit], c"Dual MIT/GPL").err().expect("it returns nothing");
        let text = error.to_string();
        assert!(text.contains("none") && text.contains("R0 !read_ok"), "{text}");
    }

    #[test]
    fn what_is_no_object_is_refused() {
        assert!(matches!(Loaded::new(&[0; 64], &[]), Err(LoadError::Object(_))));
    }
}
