//! Which hooks there are, and the ways to attach to each: tracepoints first, because every kernel has
//! them; functions (fentry, fexit) and probes only where no tracepoint tells.

use std::{fs::File, io::Read as _};

use aya::{
    Btf, Ebpf,
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSockopt, FEntry, FExit, Iter, KProbe, Program, ProgramError, RawTracePoint},
};
use rsttrace_common::hook;

use super::{Choice, Options, btf::KernelBtf, preflight};

/// A place in the kernel where something is learned.
#[derive(Clone, Copy, Debug)]
pub struct Hook {
    pub name: &'static str,
    /// What is lost without it; `None`: nothing works without it.
    pub cost_of_missing: Option<&'static str>,
    /// Only more evidence: few miss it.
    pub extra: bool,
    /// Tried in this order.
    ways: &'static [Way],
}

/// A way to attach to a hook.
#[derive(Clone, Copy, Debug)]
enum Way {
    /// The tracepoint of the hook's name, and its program.
    Tracepoint,
    Entry(&'static [Function]),
    Exit(&'static [Function]),
    /// One program on the entry or the return (its kind tells) of several functions.
    Probe(&'static str, &'static [&'static str]),
    /// The exit of every system call.
    SystemCalls,
    Getsockopt,
    Files,
}

/// A kernel function and the program for it, if it has this many arguments.
#[derive(Clone, Copy, Debug)]
struct Function {
    name: &'static str,
    args: usize,
    program: &'static str,
}

const fn function(name: &'static str, args: usize, program: &'static str) -> Function {
    Function { name, args, program }
}

impl Way {
    fn name(self) -> &'static str {
        match self {
            Self::Tracepoint => "tp_btf",
            Self::Entry(_) => "fentry",
            Self::Exit(_) => "fexit",
            Self::Probe(..) => "kprobe",
            Self::SystemCalls => "raw_tp",
            Self::Getsockopt => "cgroup",
            Self::Files => "iter",
        }
    }
}

/// Ways that `--without` knows beside the hooks' names.
pub const OPTIONAL_WAYS: [&str; 3] = ["fentry", "fexit", "kprobe"];

const TRACEPOINT: &[Way] = &[Way::Tracepoint];

const fn required(name: &'static str) -> Hook {
    Hook { name, cost_of_missing: None, extra: false, ways: TRACEPOINT }
}

const fn optional(name: &'static str, ways: &'static [Way], cost_of_missing: &'static str) -> Hook {
    Hook { name, cost_of_missing: Some(cost_of_missing), extra: false, ways }
}

/// It has nothing to do with the socket table.
const RESET_PROBE: &str = "send_reset_kprobe";
const OLD_TABLE: &str = "needs Linux 6.1: before, the kernel warns of such programs with a table that grows";

/// Destruction first and opens last: no entry is made that nobody removes.
static HOOKS: [Hook; 15] = [
    required("tcp_destroy_sock"),
    optional(
        "sock_recv_length",
        &[
            Way::Tracepoint,
            Way::Exit(&[function("tcp_recvmsg", 6, "tcp_recvmsg_6"), function("tcp_recvmsg", 5, "tcp_recvmsg_5")]),
            Way::Probe("recv_kretprobe", &["tcp_recvmsg"]),
        ],
        "errors returned by receives are concluded when the socket is closed (observer \"inferred\")",
    ),
    optional(
        "sock_send_length",
        &[
            Way::Tracepoint,
            Way::Exit(&[function("tcp_sendmsg", 3, "tcp_sendmsg_3"), function("tcp_sendpage", 5, "tcp_sendpage_5")]),
            Way::Probe("send_kretprobe", &["tcp_sendmsg", "tcp_sendpage"]),
        ],
        "errors returned by sends are concluded when the socket is closed (observer \"inferred\")",
    ),
    optional(
        hook::NAMES[hook::SYS_EXIT as usize],
        &[Way::SystemCalls],
        "errors that no other hook shows are concluded when the socket is closed (observer \"inferred\")",
    ),
    optional(hook::TCP_PROBE, TRACEPOINT, "what a RST's own header says is not seen, and causes that rest on it are the weaker ones"),
    Hook {
        name: hook::TCP_RESET,
        cost_of_missing: Some("the header of a RST that arrives in another state than ESTABLISHED is not seen"),
        extra: true,
        ways: &[Way::Entry(&[function("tcp_reset", 2, "tcp_reset")]), Way::Probe("tcp_reset_kprobe", &["tcp_reset"])],
    },
    required("tcp_receive_reset"),
    optional("tcp_send_reset", TRACEPOINT, "RSTs that this host sends are told from their effects only, without the kernel's reason"),
    optional(
        hook::TCP_V4_SEND_RESET,
        &[Way::Entry(&[function("tcp_v4_send_reset", 2, "tcp_v4_send_reset")]), Way::Probe(RESET_PROBE, &["tcp_v4_send_reset"])],
        "RSTs over IPv4 from closed ports and TIME_WAIT are not seen (nstat's OutRsts counts them)",
    ),
    optional(
        hook::TCP_V6_SEND_RESET,
        &[Way::Entry(&[function("tcp_v6_send_reset", 2, "tcp_v6_send_reset")]), Way::Probe(RESET_PROBE, &["tcp_v6_send_reset"])],
        "RSTs over IPv6 from closed ports and TIME_WAIT are not seen (nstat's OutRsts counts them)",
    ),
    required("inet_sock_set_state"),
    optional(
        "cgroup/getsockopt",
        &[Way::Getsockopt],
        "errors taken by getsockopt(SO_ERROR) are concluded when the socket is closed (observer \"inferred\")",
    ),
    optional("iter/task_file", &[Way::Files], "owners of connections older than the tracer are looked up when they end"),
    optional(
        hook::SCHED_PROCESS_FORK,
        TRACEPOINT,
        "processes that start later are not preferred when the buffer fills, and with --http their requests are not named",
    ),
    optional(
        hook::NAMES[hook::SCHED_PROCESS_EXEC as usize],
        TRACEPOINT,
        "processes that are meant later are not preferred when the buffer fills, and with --http their requests are not named",
    ),
];

/// Every hook of every kernel.
pub fn all() -> &'static [Hook] {
    &HOOKS
}

/// Every name that `--without` takes.
pub fn names() -> impl Iterator<Item = &'static str> {
    HOOKS.iter().map(|hook| hook.name).chain(OPTIONAL_WAYS)
}

/// The hooks that are of use on this kernel.
pub fn hooks(kernel: &KernelBtf, options: &Options) -> Vec<Hook> {
    let wanted = |name: &str| match name {
        hook::TCP_RESET => kernel.function_args("tcp_reset") == Some(2),
        // Since 6.10 the tracepoint shows these too.
        hook::TCP_V4_SEND_RESET => kernel.tracepoint_args("tcp_send_reset") == Some(2),
        hook::TCP_V6_SEND_RESET => kernel.tracepoint_args("tcp_send_reset") == Some(2) && preflight::has_ipv6(),
        "sys_exit" => options.syscall_hooks,
        hook::SCHED_PROCESS_FORK => options.choice.is_some(),
        "sched_process_exec" => options.choice == Some(Choice::ByProgram),
        _ => true,
    };
    HOOKS.iter().copied().filter(|hook| wanted(hook.name)).collect()
}

/// Attaches hook after hook.
pub struct Attacher<'a> {
    pub ebpf: &'a mut Ebpf,
    pub btf: &'a Btf,
    pub kernel: &'a KernelBtf,
    pub options: &'a Options,
    /// What is attached: hooks and their programs.
    pub programs: Vec<(&'static str, &'static str)>,
}

impl Attacher<'_> {
    /// Attaches to a hook by the first way that this kernel allows, and names it.
    ///
    /// # Errors
    /// Why not, in words, way by way.
    pub fn attach(&mut self, hook: Hook) -> Result<&'static str, String> {
        let unwanted = |name: &str| self.options.without.iter().any(|without| without == name);
        if unwanted(hook.name) {
            return Err("not wanted (--without)".to_owned());
        }
        let ways: Vec<Way> = hook.ways.iter().copied().filter(|way| !unwanted(way.name())).collect();
        let mut reasons = Vec::new();
        for way in ways {
            let before = self.programs.len();
            match self.attach_by(hook.name, way) {
                Ok(()) => return Ok(way.name()),
                Err(why) => reasons.push(if hook.ways.len() == 1 { why } else { format!("{}: {why}", way.name()) }),
            }
            self.unload_from(before);
        }
        Err(if reasons.is_empty() { "not wanted (--without)".to_owned() } else { reasons.join("; ") })
    }

    /// What could be loaded and not be attached is of no use.
    fn unload_from(&mut self, first: usize) {
        for (_, name) in self.programs.split_off(first) {
            if self.programs.iter().any(|(_, other)| *other == name) {
                continue;
            }
            // An error says that it was not loaded.
            let _ = match self.ebpf.program_mut(name) {
                Some(Program::FEntry(program)) => program.unload(),
                Some(Program::FExit(program)) => program.unload(),
                Some(Program::KProbe(program)) => program.unload(),
                _ => Ok(()),
            };
        }
    }

    fn attach_by(&mut self, hook: &'static str, way: Way) -> Result<(), String> {
        match way {
            Way::Probe(name, _) if name != RESET_PROBE && !self.table_serves_probes() => Err(OLD_TABLE.to_owned()),
            Way::SystemCalls if !self.table_serves_probes() => Err(OLD_TABLE.to_owned()),
            Way::Tracepoint if self.kernel.tracepoint_args(hook).is_none() => Err("this kernel has no such tracepoint".to_owned()),
            Way::Tracepoint => {
                let btf = self.btf;
                let program: &mut BtfTracePoint = self.program(hook, hook)?;
                program.load(hook, btf).map_err(explain)?;
                program.attach().map(drop).map_err(explain)
            }
            Way::Entry(functions) => self.attach_functions(hook, functions, |program: &mut FEntry, function, btf| {
                program.load(function, btf)?;
                program.attach().map(drop)
            }),
            Way::Exit(functions) => self.attach_functions(hook, functions, |program: &mut FExit, function, btf| {
                program.load(function, btf)?;
                program.attach().map(drop)
            }),
            Way::Probe(name, functions) => self.attach_probe(hook, name, functions),
            Way::SystemCalls => {
                let program: &mut RawTracePoint = self.program(hook, "sys_exit")?;
                program.load().map_err(explain)?;
                program.attach("sys_exit").map(drop).map_err(explain)
            }
            Way::Getsockopt => self.attach_getsockopt(hook),
            Way::Files => self.read_files(hook),
        }
    }

    /// The socket table allocates its entries as they come. Before 6.1 the verifier warns of that in a program
    /// that is no tracing program, and a host may be set to panic at warnings (`check_map_prog_compatibility()`).
    fn table_serves_probes(&self) -> bool {
        self.kernel.has_function("bpf_mem_alloc_init")
    }

    /// A program of the object, noted as the hook's.
    fn program<T>(&mut self, hook: &'static str, name: &'static str) -> Result<&mut T, String>
    where
        for<'p> &'p mut T: TryFrom<&'p mut Program, Error = ProgramError>,
    {
        self.programs.push((hook, name));
        self.ebpf.program_mut(name).ok_or_else(|| format!("program {name} is not in the object"))?.try_into().map_err(explain)
    }

    /// Attaches to those functions that this kernel has in this form; there must be one.
    fn attach_functions<T>(
        &mut self,
        hook: &'static str,
        functions: &[Function],
        attach: impl Fn(&mut T, &str, &Btf) -> Result<(), ProgramError>,
    ) -> Result<(), String>
    where
        for<'p> &'p mut T: TryFrom<&'p mut Program, Error = ProgramError>,
    {
        let fitting: Vec<&Function> = functions.iter().filter(|f| self.kernel.function_args(f.name) == Some(f.args)).collect();
        let Some(first) = fitting.first() else { return Err(unknown(functions.iter().map(|f| f.name))) };
        log::debug!("{hook}: by {}", first.name);
        let btf = self.btf;
        for Function { name, program, .. } in fitting {
            attach(self.program(hook, program)?, name, btf).map_err(explain)?;
        }
        Ok(())
    }

    fn attach_probe(&mut self, hook: &'static str, name: &'static str, functions: &[&str]) -> Result<(), String> {
        let there: Vec<&str> = functions.iter().copied().filter(|f| self.kernel.has_function(f)).collect();
        if there.is_empty() {
            return Err(unknown(functions.iter().copied()));
        }
        let program: &mut KProbe = self.program(hook, name)?;
        // One program may serve several hooks.
        if program.fd().is_err() {
            program.load().map_err(explain)?;
        }
        there.iter().try_for_each(|function| program.attach(function, 0).map(drop)).map_err(explain)
    }

    fn attach_getsockopt(&mut self, hook: &'static str) -> Result<(), String> {
        let root = preflight::cgroup2_root().ok_or("the root of cgroup2 is not mounted")?;
        let cgroup = File::open(&root).map_err(|error| format!("cannot open {}: {error}", root.display()))?;
        let program: &mut CgroupSockopt = self.program(hook, "getsockopt")?;
        program.load().map_err(|error| {
            let refused = matches!(&error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM));
            let why = explain(error);
            if refused { format!("{why}: it needs CAP_NET_ADMIN") } else { why }
        })?;
        // A BPF link (5.7+) always shares the hook with other programs, and takes no mode.
        program.attach(cgroup, CgroupAttachMode::Single).map(drop).map_err(explain)
    }

    /// Runs the iterator over all descriptors once; what it finds goes straight into the socket table.
    fn read_files(&mut self, hook: &'static str) -> Result<(), String> {
        let btf = self.btf;
        let program: &mut Iter = self.program(hook, "seed_owners")?;
        program.load("task_file", btf).map_err(explain)?;
        let link = program.attach().map_err(explain)?;
        let link = program.take_link(link).map_err(explain)?;
        let mut file = link.into_file().map_err(|error| chain(&error))?;
        file.read_to_end(&mut Vec::new()).map(drop).map_err(|error| error.to_string())
    }
}

fn unknown<'a>(functions: impl Iterator<Item = &'a str>) -> String {
    let mut names: Vec<&str> = functions.collect();
    names.dedup();
    format!("this kernel has no such {}", names.join(" or "))
}

/// How the lines begin that the verifier's log ends with, after the reason.
const VERIFIER_STATISTICS: [&str; 3] = ["verification time", "stack depth", "processed"];

/// The reason in words; the verifier's log, where there is one, goes to the debug log in full.
fn explain(error: ProgramError) -> String {
    if let ProgramError::LoadError { io_error, verifier_log } = &error {
        log::debug!("verifier: {verifier_log}");
        let log = verifier_log.to_string();
        let last = log
            .lines()
            .rev()
            .find(|line| !line.is_empty() && !VERIFIER_STATISTICS.iter().any(|start| line.starts_with(start)))
            .unwrap_or_default();
        return if last.is_empty() { io_error.to_string() } else { format!("{io_error} ({last})") };
    }
    chain(&error)
}

pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let inner_text = inner.to_string();
        if !text.contains(&inner_text) {
            text.push_str(": ");
            text.push_str(&inner_text);
        }
        source = inner.source();
    }
    text
}
