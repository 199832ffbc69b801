//! Kernel objects of BPF, by the descriptors that a process has of them; and programs that do nothing.

use std::{
    collections::BTreeSet,
    ffi::CString,
    fs, io,
    os::fd::{AsRawFd, FromRawFd, OwnedFd},
};

/// Commands of bpf(2).
const PROG_LOAD: libc::c_int = 5;
const PROG_GET_FD_BY_ID: libc::c_int = 13;
const OBJ_GET_INFO_BY_FD: libc::c_int = 15;
const RAW_TRACEPOINT_OPEN: libc::c_int = 17;
const ENABLE_STATS: libc::c_int = 32;

/// Line in fdinfo, and the number of the bpf(2) command that opens such an object by its id.
const OBJECTS: [(&str, libc::c_int); 3] = [("prog_id", PROG_GET_FD_BY_ID), ("map_id", 14), ("link_id", 30)];

/// Number of the command that opens it, and its id.
pub type BpfObject = (libc::c_int, u32);

/// What is behind a process's descriptors; nothing where it has ended.
pub fn bpf_objects(pid: libc::pid_t) -> BTreeSet<BpfObject> {
    let mut objects = BTreeSet::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fdinfo")).into_iter().flatten().flatten() {
        let info = fs::read_to_string(entry.path()).unwrap_or_default();
        for line in info.lines() {
            for (name, command) in OBJECTS {
                if let Some(id) = line.strip_prefix(name).and_then(|rest| rest.strip_prefix(':')) {
                    objects.insert((command, id.trim().parse().expect("an id")));
                }
            }
        }
    }
    objects
}

/// Whether the kernel still has it.
pub fn bpf_object_exists((command, id): BpfObject) -> bool {
    let mut attributes = [0_u32; 32];
    attributes[0] = id;
    // SAFETY: `union bpf_attr` with an id in front; a descriptor that comes back is closed.
    unsafe {
        let fd = libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), 12);
        if fd >= 0 {
            libc::close(fd as libc::c_int);
        }
        fd >= 0
    }
}

/// A program, as the kernel describes it.
#[derive(Clone, Debug)]
pub struct Program {
    /// Its first 15 characters.
    pub name: String,
    /// Runs, and nanoseconds of them, while [`Statistics`] were kept.
    pub runs: u64,
    pub run_ns: u64,
    /// What the verifier went through (5.16+); its limit is a million.
    pub verified_instructions: u32,
}

/// The programs behind a process's descriptors, by name.
///
/// # Errors
/// Where the kernel does not describe one of them.
pub fn programs(pid: libc::pid_t) -> io::Result<Vec<Program>> {
    let ids = bpf_objects(pid).into_iter().filter(|(command, _)| *command == PROG_GET_FD_BY_ID);
    let mut programs = ids.map(|(command, id)| describe(&bpf(command, &[id.into()])?)).collect::<io::Result<Vec<_>>>()?;
    programs.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(programs)
}

fn describe(program: &OwnedFd) -> io::Result<Program> {
    // `struct bpf_prog_info` up to `verified_insns`, in words: name at 8, run_time_ns, run_cnt and recursion_misses from 24.
    let mut info = [0_u64; 28];
    let length = size_of_val(&info) as u64;
    let attributes = [program.as_raw_fd() as u64 | length << 32, info.as_mut_ptr() as u64];
    // SAFETY: the kernel writes at most `length` bytes into `info`, which is mutably ours.
    check(unsafe { libc::syscall(libc::SYS_bpf, OBJ_GET_INFO_BY_FD, attributes.as_ptr(), size_of_val(&attributes)) })?;
    let name: Vec<u8> = [info[8], info[9]].iter().flat_map(|word| word.to_ne_bytes()).take_while(|byte| *byte != 0).collect();
    Ok(Program {
        name: String::from_utf8_lossy(&name).into_owned(),
        runs: info[25],
        run_ns: info[24],
        verified_instructions: info[27] as u32,
    })
}

/// A program that returns at once, attached to a tracepoint until this is dropped. The kernel runs it on the same path as
/// one that knows its arguments by BTF (`__bpf_trace_run()`).
pub struct EmptyProgram {
    _program: OwnedFd,
    _link: OwnedFd,
}

impl EmptyProgram {
    /// # Errors
    /// Where the kernel has no such tracepoint, or one may not attach to it.
    pub fn attach(tracepoint: &str) -> io::Result<Self> {
        const RAW_TRACEPOINT: u64 = 17;
        /// `r0 = 0; exit`
        const INSTRUCTIONS: [u64; 2] = [0xb7, 0x95];
        let mut name = [0; 16];
        let length = tracepoint.len().min(15);
        name[..length].copy_from_slice(&tracepoint.as_bytes()[..length]);
        let [first, second] = [0, 8].map(|at| u64::from_ne_bytes(std::array::from_fn(|i| name[at + i])));
        let count = INSTRUCTIONS.len() as u64;
        let program =
            bpf(PROG_LOAD, &[RAW_TRACEPOINT | count << 32, INSTRUCTIONS.as_ptr() as u64, c"GPL".as_ptr() as u64, 0, 0, 0, first, second])?;
        let tracepoint = CString::new(tracepoint)?;
        let link = bpf(RAW_TRACEPOINT_OPEN, &[tracepoint.as_ptr() as u64, program.as_raw_fd() as u64])?;
        Ok(Self { _program: program, _link: link })
    }
}

/// While it lives, the kernel counts and times every run of every program.
pub struct Statistics(#[expect(dead_code, reason = "closing it ends them")] OwnedFd);

impl Statistics {
    /// # Errors
    /// Before Linux 5.8.
    pub fn enable() -> io::Result<Self> {
        bpf(ENABLE_STATS, &[0]).map(Self)
    }
}

/// A command of bpf(2) that gives a descriptor.
fn bpf(command: libc::c_int, attributes: &[u64]) -> io::Result<OwnedFd> {
    // SAFETY: `union bpf_attr` of this length; the kernel only reads it, and what it points to.
    let fd = check(unsafe { libc::syscall(libc::SYS_bpf, command, attributes.as_ptr(), size_of_val(attributes)) })?;
    // SAFETY: a new descriptor, which is nobody else's.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn check(result: libc::c_long) -> io::Result<libc::c_long> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
