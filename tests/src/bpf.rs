//! Kernel objects of BPF, by the descriptors that a process has of them.

use std::{collections::BTreeSet, fs};

/// Line in fdinfo, and the number of the bpf(2) command that opens such an object by its id.
const OBJECTS: [(&str, libc::c_int); 3] = [("prog_id", 13), ("map_id", 14), ("link_id", 30)];

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
