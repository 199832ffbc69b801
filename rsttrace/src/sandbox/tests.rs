//! What confines a process cannot be taken back, so each test does it in a child.

use std::{
    fs::{self, File},
    io::{Read as _, Write as _},
    panic::{AssertUnwindSafe, catch_unwind},
};

use super::{capabilities::keep_least, files::only_read_below, syscalls::*, *};

/// Runs `check` in a forked child and fails with what it says.
fn in_a_child(check: impl FnOnce() -> Result<(), String>) {
    let (read, write) = std::io::pipe().unwrap();
    // SAFETY: the child only runs `check` and ends by _exit(); locks that other threads of the test
    // program may hold are libtest's and the allocator's, which glibc takes care of.
    match unsafe { libc::fork() } {
        0 => {
            drop(read);
            let said = catch_unwind(AssertUnwindSafe(check)).unwrap_or_else(|_| Err("panicked".to_owned()));
            let mut write = write;
            if let Err(why) = said {
                let _ = write.write_all(why.as_bytes());
            }
            // SAFETY: ends the child.
            unsafe { libc::_exit(0) }
        }
        pid => {
            drop(write);
            let mut said = String::new();
            let mut read = read;
            read.read_to_string(&mut said).unwrap();
            let mut status = 0;
            // SAFETY: `status` is ours, and the child too.
            unsafe { libc::waitpid(pid, &raw mut status, 0) };
            assert_eq!((said.as_str(), status), ("", 0));
        }
    }
}

fn ensure(condition: bool, what: &str) -> Result<(), String> {
    if condition { Ok(()) } else { Err(what.to_owned()) }
}

fn refused<T>(result: std::io::Result<T>, errors: &[i32], what: &str) -> Result<(), String> {
    match result {
        Ok(_) => Err(format!("{what}: possible")),
        Err(error) if error.raw_os_error().is_some_and(|code| errors.contains(&code)) => Ok(()),
        Err(error) => Err(format!("{what}: {error}")),
    }
}

fn call(result: libc::c_long) -> std::io::Result<()> {
    if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }
}

#[test]
fn landlock_leaves_reading_below_what_is_named_and_nothing_else() {
    in_a_child(|| {
        let open = File::open("/etc/passwd").map_err(|error| error.to_string())?;
        match only_read_below(&["/proc"]) {
            // Not in this kernel: said, and nothing else happens.
            Err(why) => return ensure(why.contains("kernel"), &why),
            Ok(abi) => ensure(abi.starts_with("ABI "), &abi)?,
        }
        fs::read_to_string("/proc/self/fdinfo/0").map_err(|error| format!("own fdinfo: {error}"))?;
        for public in ["stat", "cmdline", "net/snmp", "net/netstat"] {
            fs::read_to_string(format!("/proc/1/{public}")).map_err(|error| format!("another's {public}: {error}"))?;
        }
        let mut text = String::new();
        (&open).read_to_string(&mut text).map_err(|error| format!("what was open: {error}"))?;
        refused(fs::read("/etc/passwd"), &[libc::EACCES], "reading /etc/passwd")?;
        refused(File::create("/tmp/rsttrace-sandbox-test"), &[libc::EACCES], "making a file")?;
        refused(fs::read_link("/proc/1/exe"), &[libc::EACCES, libc::EPERM], "looking into another process")?;
        refused(std::process::Command::new("/bin/true").spawn(), &[libc::EACCES], "executing")
    });
}

#[test]
fn seccomp_answers_eperm_to_what_a_trace_does_not_do() {
    in_a_child(|| {
        confine(Role::Tracer)?;
        fs::read_to_string("/proc/self/status").map_err(|error| format!("reading: {error}"))?;
        let eperm = [libc::EPERM];
        refused(File::create("/tmp/rsttrace-sandbox-test"), &eperm, "making a file")?;
        refused(fs::OpenOptions::new().append(true).open("/dev/null"), &eperm, "opening for writing")?;
        refused(fs::remove_file("/tmp/rsttrace-sandbox-test"), &eperm, "removing a file")?;
        refused(std::net::TcpListener::bind("127.0.0.1:0"), &eperm, "a socket")?;
        refused(std::thread::Builder::new().spawn(|| ()), &eperm, "a thread")?;
        refused(std::process::Command::new("/bin/true").spawn(), &eperm, "a process")?;
        // SAFETY: none of these calls is let through, and none would touch our memory.
        let results = unsafe {
            [
                ("ptrace", libc::syscall(libc::SYS_ptrace, libc::PTRACE_ATTACH, 1, 0, 0)),
                ("process_vm_readv", libc::syscall(libc::SYS_process_vm_readv, 1, 0, 0, 0, 0, 0)),
                ("execve", libc::syscall(libc::SYS_execve, c"/bin/true".as_ptr(), 0, 0)),
                ("kill", libc::syscall(libc::SYS_kill, 1, 0)),
                ("tgkill of another", libc::syscall(libc::SYS_tgkill, 1, 1, 0)),
                ("bpf(BPF_PROG_LOAD)", libc::syscall(libc::SYS_bpf, 5, 0, 0)),
                ("bpf(BPF_MAP_UPDATE_ELEM)", libc::syscall(libc::SYS_bpf, 2, 0, 0)),
                ("setns", libc::syscall(libc::SYS_setns, 0, 0)),
                ("unshare", libc::syscall(libc::SYS_unshare, 0)),
                ("mount", libc::syscall(libc::SYS_mount, 0, 0, 0, 0, 0)),
                ("io_uring_setup", libc::syscall(libc::SYS_io_uring_setup, 0, 0)),
                ("executable memory", libc::syscall(libc::SYS_mmap, 0, 4096, 4, 0x22, -1, 0)),
                ("F_SETOWN", libc::syscall(libc::SYS_fcntl, 0, libc::F_SETOWN, 1)),
                ("O_ASYNC", libc::syscall(libc::SYS_fcntl, 0, libc::F_SETFL, libc::O_ASYNC)),
                ("TIOCSTI", libc::syscall(libc::SYS_ioctl, 0, libc::TIOCSTI, 0)),
            ]
        };
        results.into_iter().try_for_each(|(what, result)| refused(call(result), &eperm, what))
    });
}

#[test]
fn the_reader_of_proc_cannot_even_read_maps() {
    in_a_child(|| {
        confine(Role::Reader)?;
        fs::read_link("/proc/self/exe").map_err(|error| format!("reading: {error}"))?;
        // SAFETY: not let through.
        refused(call(unsafe { libc::syscall(libc::SYS_bpf, 1, 0, 0) }), &[libc::EPERM], "bpf()")?;
        refused(File::create("/dev/null"), &[libc::EPERM], "opening for writing")
    });
}

#[test]
fn an_exporter_reads_and_connects_where_it_may_and_nowhere_else() {
    in_a_child(|| {
        let listen = || std::net::TcpListener::bind("127.0.0.1:0").map_err(|error| error.to_string());
        let (known, unknown) = (listen()?, listen()?);
        let at = |listener: &std::net::TcpListener| listener.local_addr().map_err(|error| error.to_string());
        let (known_at, unknown_at) = (at(&known)?, at(&unknown)?);
        let landlock = files::only_read_below_and_connect_to(&["/etc"], &[known_at.port()]);
        confine_exporter(&["/etc"], &[known_at.port()]);
        fs::read("/etc/passwd").map_err(|error| format!("reading below /etc: {error}"))?;
        std::net::TcpStream::connect(known_at).map_err(|error| format!("connecting: {error}"))?;
        known.accept().map_err(|error| format!("accepting: {error}"))?;
        let kinds = [libc::EPERM, libc::EACCES];
        refused(File::create("/tmp/rsttrace-sandbox-test"), &kinds, "making a file")?;
        refused(std::thread::Builder::new().spawn(|| ()), &kinds, "a thread")?;
        refused(std::process::Command::new("/bin/true").spawn(), &kinds, "a process")?;
        let abi = landlock.ok().and_then(|words| words.strip_prefix("ABI ")?.parse::<u32>().ok());
        if abi.is_some() {
            refused(fs::read("/proc/self/status"), &kinds, "reading elsewhere")?;
        }
        // Since then there are rules for ports.
        if abi.is_some_and(|abi| abi >= 4) {
            refused(std::net::TcpStream::connect(unknown_at), &kinds, "connecting to another port")?;
        }
        // SAFETY: the first makes a descriptor, the others touch no memory of ours.
        let results = unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
            [
                ("sendto", libc::syscall(libc::SYS_sendto, fd, 0, 0, libc::MSG_FASTOPEN, 0, 0)),
                ("sendmsg", libc::syscall(libc::SYS_sendmsg, fd, 0, libc::MSG_FASTOPEN)),
                ("sendmmsg", libc::syscall(libc::SYS_sendmmsg, fd, 0, 0, libc::MSG_FASTOPEN)),
            ]
        };
        results.into_iter().try_for_each(|(what, result)| refused(call(result), &[libc::EPERM], &format!("{what} that connects")))
    });
}

#[test]
fn who_only_answers_makes_no_connection_whatever_landlock_can_do() {
    use std::{
        net::{Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket},
        os::fd::AsRawFd as _,
    };
    in_a_child(|| {
        let why = |error: std::io::Error| error.to_string();
        let listener = TcpListener::bind("127.0.0.1:0").map_err(why)?;
        let at = listener.local_addr().map_err(why)?;
        let mut client = TcpStream::connect(at).map_err(why)?;
        confine(Role::Server)?;
        let (mut server, _) = listener.accept().map_err(|error| format!("accepting: {error}"))?;
        let mut byte = [7];
        client.write_all(&byte).map_err(|error| format!("asking: {error}"))?;
        server.read_exact(&mut byte).map_err(|error| format!("reading: {error}"))?;
        server.write_all(&byte).map_err(|error| format!("answering: {error}"))?;
        server.shutdown(Shutdown::Write).map_err(|error| format!("closing: {error}"))?;
        let eperm = [libc::EPERM];
        refused(TcpStream::connect(at), &eperm, "connecting")?;
        refused(UdpSocket::bind("127.0.0.1:0"), &eperm, "a socket")?;
        refused(File::open("/dev/null"), &eperm, "a file")?;
        // A socket that listens no more could be one that connects.
        let SocketAddr::V4(v4) = at else { return Err("IPv4".to_owned()) };
        let to = libc::sockaddr_in {
            sin_family: libc::AF_INET as libc::sa_family_t,
            sin_port: v4.port().to_be(),
            sin_addr: libc::in_addr { s_addr: u32::from(*v4.ip()).to_be() },
            sin_zero: [0; 8],
        };
        let fd = listener.as_raw_fd();
        let length = size_of_val(&to);
        // SAFETY: a descriptor and an address of ours.
        let results = unsafe {
            [
                ("connect", libc::syscall(libc::SYS_connect, fd, &raw const to, length)),
                ("MSG_FASTOPEN", libc::syscall(libc::SYS_sendto, fd, byte.as_ptr(), 1, libc::MSG_FASTOPEN, &raw const to, length)),
                ("sendmsg", libc::syscall(libc::SYS_sendmsg, fd, 0, 0)),
                ("sendmmsg", libc::syscall(libc::SYS_sendmmsg, fd, 0, 0, 0)),
            ]
        };
        results.into_iter().try_for_each(|(what, result)| refused(call(result), &eperm, what))
    });
}

#[test]
fn a_servant_has_the_descriptors_that_it_is_given_and_no_others() {
    use std::os::fd::AsRawFd as _;
    in_a_child(|| {
        let (mut read, mut write) = std::io::pipe().map_err(|error| error.to_string())?;
        let _not_given: Vec<_> = (0..20).map(|_| File::open("/dev/null")).collect();
        let number = write.as_raw_fd();
        let child = servant(c"test", &[number], || {
            for fd in fs::read_dir("/proc/self/fd").into_iter().flatten().flatten() {
                // Not the directory itself.
                if let Ok(target) = fs::read_link(fd.path()).map(|target| target.display().to_string())
                    && !target.ends_with("/fd")
                {
                    let _ = writeln!(write, "{}", fd.file_name().display());
                }
            }
        });
        child.map_err(|error| error.to_string())?;
        drop(write);
        let mut told = String::new();
        read.read_to_string(&mut told).map_err(|error| error.to_string())?;
        let mut told: Vec<i32> = told.lines().filter_map(|fd| fd.parse().ok()).collect();
        told.sort_unstable();
        ensure(told == [0, 1, 2, number], &format!("{told:?}"))
    });
}

#[test]
fn no_more_capabilities_are_kept_than_reading_the_counters_takes() {
    let effective = || rustix::thread::capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::all());
    for needed in [CapabilitySet::empty(), CapabilitySet::BPF, CapabilitySet::SYS_ADMIN] {
        in_a_child(|| {
            let held = rustix::thread::capabilities(None).map_err(|error| error.to_string())?;
            if !held.permitted.contains(needed) {
                return Ok(());
            }
            let kept = keep_least(|| effective().contains(needed)).map_err(|error| error.to_string())?;
            let left = rustix::thread::capabilities(None).map_err(|error| error.to_string())?;
            ensure(kept == needed, &format!("kept {kept:?} for {needed:?}"))?;
            ensure((left.effective, left.permitted) == (needed, needed), &format!("{left:?}"))?;
            ensure(left.inheritable.is_empty(), "inheritable")?;
            ensure(rustix::thread::no_new_privs() == Ok(true), "no_new_privs")
        });
    }
    in_a_child(|| {
        let kept = keep_least(|| false).map_err(|error| error.to_string())?;
        ensure(kept.is_empty() && effective().is_empty(), "nothing helps: nothing is kept")
    });
}

#[test]
fn a_broker_lives_as_long_as_its_tracer_and_holds_two_capabilities_at_most() {
    in_a_child(|| {
        use crate::enrich::ProcessSource as _;
        let mut broker = Broker::start(None).map_err(|error| error.to_string())?;
        let me = std::process::id();
        let info = broker.process(me).ok_or("does not know us")?;
        ensure(info.parent != 0 && !info.cmdline.is_empty(), "half an answer")?;
        let children = fs::read_to_string(format!("/proc/{me}/task/{me}/children")).map_err(|error| error.to_string())?;
        let child: i32 = children.trim().parse().map_err(|_| format!("children: {children:?}"))?;
        let status = fs::read_to_string(format!("/proc/{child}/status")).map_err(|error| error.to_string())?;
        ensure(status.starts_with("Name:\trsttrace-proc\n"), &status)?;
        let mask = CapabilitySet::SYS_PTRACE | CapabilitySet::DAC_READ_SEARCH;
        let held = status.lines().find_map(|line| line.strip_prefix("CapPrm:\t")).unwrap_or_default();
        let held = u64::from_str_radix(held, 16).map_err(|error| error.to_string())?;
        ensure(held & !mask.bits() == 0, &status)?;
        ensure(status.contains("NoNewPrivs:\t1\n") && status.contains("Seccomp:\t2\n"), &status)?;
        drop(broker);
        let mut exit = 0;
        // SAFETY: `exit` is ours, and the child too.
        let waited = unsafe { libc::waitpid(child, &raw mut exit, 0) };
        ensure((waited, exit) == (child, 0), "it goes on, or fell")
    });
}

#[test]
fn a_trial_says_how_it_would_be_and_changes_nothing() {
    let before = rustix::thread::capabilities(None).unwrap();
    let (words, complete) = Sandbox::trial(|| true).unwrap();
    assert!(words.starts_with("no capabilities, "), "{words}");
    assert_eq!(complete, !words.contains("no Landlock") && words.ends_with(", seccomp"), "{words}");
    assert_eq!(rustix::thread::capabilities(None).unwrap(), before);
    File::open("/etc/passwd").unwrap();
}

#[test]
fn the_words_say_what_is_missing() {
    let mut sandbox = Sandbox { capabilities: Ok(CapabilitySet::empty()), landlock: Ok("ABI 7".to_owned()), seccomp: Ok(()) };
    assert_eq!(sandbox.to_string(), "no capabilities, Landlock (ABI 7), seccomp");
    assert!(sandbox.is_complete());
    sandbox.capabilities = Ok(CapabilitySet::BPF);
    sandbox.landlock = Err("not in this kernel".to_owned());
    sandbox.seccomp = Err("Invalid argument".to_owned());
    assert_eq!(
        sandbox.to_string(),
        "CAP_BPF kept (this kernel asks for it to read counters), no Landlock: not in this kernel, no seccomp: Invalid argument"
    );
    assert!(!sandbox.is_complete());
}
