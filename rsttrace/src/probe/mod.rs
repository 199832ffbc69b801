//! Everything that touches the kernel: preflight, offsets, loading, attaching, the ring buffer.
//! The only module that knows aya.

pub mod btf;
mod offsets;
pub mod preflight;

use std::{
    fs::{self, File},
    io::Read as _,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
};

use aya::{
    Btf, Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{MapData, PerCpuArray, RingBuf},
    programs::{BtfTracePoint, CgroupAttachMode, CgroupSockopt, Iter, ProgramError},
};
use aya_log::EbpfLogger;
use rsttrace_common::{Settings, counter, hook};
use thiserror::Error;

use self::btf::KernelBtf;

static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("RSTTRACE_EBPF_OBJECT"));

/// Why tracing cannot start here. The message says what to do where something can be done.
#[derive(Debug, Error)]
pub enum ProbeError {
    #[error("{what}\nhint: {hint}")]
    Unusable { what: String, hint: String },
}

fn unusable(what: impl Into<String>, hint: impl Into<String>) -> ProbeError {
    ProbeError::Unusable { what: what.into(), hint: hint.into() }
}

/// What the loader is asked for.
#[derive(Clone, Debug)]
pub struct Options {
    /// Orderly ends cross the ring too.
    pub want_fin: bool,
    /// Ring buffer size; rounded up to a power of two of pages.
    pub buffer_bytes: u32,
    /// Sockets whose past is remembered.
    pub max_sockets: u32,
    /// Hooks not to attach, by their names.
    pub without: Vec<String>,
    /// Log calls of the kernel half are compiled in.
    pub kernel_log: bool,
}

/// How one hook is attached.
#[derive(Clone, Debug)]
pub struct HookStatus {
    pub name: &'static str,
    /// `None`: not attached.
    pub how: Option<&'static str>,
    /// Why not, in words.
    pub why_not: Option<String>,
}

/// Counters of the kernel half, summed over CPUs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub lost_by_hook: [u64; hook::COUNT],
    pub lost_records: u64,
    pub orderly: u64,
    pub untracked: u64,
    pub seeded: u64,
    /// By hook: runs that the kernel skipped, because an interrupt met a run of the same program on
    /// its CPU (`recursion_misses`, 5.12 and newer).
    pub skipped: Vec<(&'static str, u64)>,
}

/// The attached programs. Dropping this detaches them; so does the end of the process.
pub struct Probe {
    ring: RingBuf<MapData>,
    counters: PerCpuArray<MapData, u64>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    programs: Ebpf,
    /// Every hook, attached or not.
    pub hooks: Vec<HookStatus>,
    /// One line each: what is missing and what it costs.
    pub warnings: Vec<String>,
    /// `enum sk_rst_reason` of this kernel, without its prefix.
    pub reasons: Vec<(i32, String)>,
}

/// One program of the kernel half, as the kernel describes it.
#[derive(Clone, Debug)]
pub struct ProgramFacts {
    pub name: String,
    /// What the verifier went through (5.16+); its limit is a million.
    pub verified_instructions: Option<u32>,
    pub translated_bytes: Option<u32>,
}

/// A struct that user space hands to the kernel half as a frozen global.
#[repr(transparent)]
#[derive(Clone, Copy)]
struct Frozen<T>(T);

// SAFETY: only used with `Offsets` and `Settings`: repr(C), `u32` members only, no padding.
unsafe impl<T: Copy + 'static> Pod for Frozen<T> {}

/// Destruction first and opens last: no entry is made that nobody removes.
const TRACEPOINTS: [&str; 7] = [
    "tcp_destroy_sock",
    "sock_recv_length",
    "sock_send_length",
    hook::TCP_PROBE,
    "tcp_receive_reset",
    "tcp_send_reset",
    "inet_sock_set_state",
];

/// What is lost without an optional hook; `None`: nothing works without it.
pub fn cost_of_missing(name: &str) -> Option<&'static str> {
    match name {
        "tcp_send_reset" => Some("RSTs that this host sends are told from their effects only, without the kernel's reason"),
        "sock_recv_length" => Some("errors returned by receives are concluded when the socket is closed (observer \"inferred\")"),
        "sock_send_length" => Some("errors returned by sends are concluded when the socket is closed (observer \"inferred\")"),
        "cgroup/getsockopt" => Some("errors taken by getsockopt(SO_ERROR) are concluded when the socket is closed (observer \"inferred\")"),
        hook::TCP_PROBE => Some("what a RST's own header says is not seen, and causes that rest on it are the weaker ones"),
        "iter/task_file" => Some("owners of connections older than the tracer are looked up when they end"),
        _ => None,
    }
}

/// Every hook that is tried, by name.
pub fn hook_names() -> impl Iterator<Item = &'static str> {
    TRACEPOINTS.iter().copied().chain(["cgroup/getsockopt", "iter/task_file"])
}

impl Probe {
    /// Loads and attaches everything, then seeds the owners of sockets that exist already.
    ///
    /// # Errors
    /// When this machine cannot run it: no BTF, no privilege, a required hook refused.
    pub fn start(options: &Options) -> Result<Self, ProbeError> {
        Self::start_ignoring(std::process::id(), options)
    }

    /// The same, but what our own tasks do is told as anybody's: for who makes ends to look at.
    ///
    /// # Errors
    /// As [`Probe::start`].
    pub fn start_naming_us(options: &Options) -> Result<Self, ProbeError> {
        Self::start_ignoring(0, options)
    }

    fn start_ignoring(own_tgid: u32, options: &Options) -> Result<Self, ProbeError> {
        preflight::capabilities()?;
        let kernel = KernelBtf::from_file(Path::new(btf::VMLINUX)).map_err(|error| {
            unusable(
                error.to_string(),
                "rsttrace reads struct layouts from the kernel's BTF: it needs a kernel built with CONFIG_DEBUG_INFO_BTF (5.10 or newer)",
            )
        })?;
        let (offsets, missing) = offsets::resolve(&kernel)
            .map_err(|name| unusable(format!("this kernel's BTF has no member {name}"), "please report this kernel's version"))?;
        let mut warnings: Vec<String> =
            missing.iter().map(|name| format!("this kernel has no {name}: what it feeds stays unknown")).collect();
        let has = |name: &str| kernel.enumerators("bpf_func_id").iter().any(|(helper, _)| *helper == name);
        let settings = Settings {
            want_fin: options.want_fin.into(),
            has_task_pt_regs: (has("BPF_FUNC_task_pt_regs") && !missing.iter().any(|name| name.starts_with("pt_regs__"))).into(),
            has_reset_reason: (kernel.tracepoint_args("tcp_send_reset") >= Some(3)).into(),
            has_socket_cookie: kernel.has_function("bpf_get_socket_ptr_cookie").into(),
            own_tgid,
        };
        let reasons = kernel
            .enumerators("sk_rst_reason")
            .into_iter()
            .map(|(name, value)| (value, name.trim_start_matches("SK_RST_REASON_").to_owned()))
            .collect();

        let (offsets, settings) = (Frozen(offsets), Frozen(settings));
        let log_level: u8 = if options.kernel_log { aya_log::Level::Debug as u8 } else { 0 };
        let buffer_bytes = options.buffer_bytes.max(page_size()).next_power_of_two();
        let mut ebpf = EbpfLoader::new()
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("OFFSETS", &offsets, true)
            .override_global("SETTINGS", &settings, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("EVENTS", buffer_bytes)
            .map_max_entries("SOCKETS", options.max_sockets)
            .load(OBJECT)
            .map_err(|error| {
                unusable(
                    format!("cannot load the kernel half: {}", chain(&error)),
                    "before 5.11 the maps count against RLIMIT_MEMLOCK: raise it (ulimit -l unlimited) or run with CAP_SYS_RESOURCE",
                )
            })?;

        let btf = Btf::from_sys_fs()
            .map_err(|error| unusable(format!("cannot parse the kernel's BTF: {error}"), "please report this kernel's version"))?;
        let mut hooks = Vec::new();
        for name in TRACEPOINTS.iter().copied().chain(["cgroup/getsockopt", "iter/task_file"]) {
            let result = if options.without.iter().any(|without| without == name) {
                Err("not wanted (--without)".to_owned())
            } else {
                match name {
                    "cgroup/getsockopt" => attach_getsockopt(&mut ebpf),
                    "iter/task_file" => seed(&mut ebpf, &btf),
                    _ => attach_tracepoint(&mut ebpf, name, &btf),
                }
            };
            if let Err(why) = &result {
                match cost_of_missing(name) {
                    Some(cost) => warnings.push(format!("no {name}: {why}; {cost}")),
                    None => {
                        return Err(unusable(
                            format!("cannot attach {name}: {why}"),
                            "this hook is required: it needs CAP_BPF and CAP_PERFMON (try sudo) and a kernel of 5.10 or newer with CONFIG_DEBUG_INFO_BTF",
                        ));
                    }
                }
            }
            let (how, why_not) = match result {
                Ok(how) => (Some(how), None),
                Err(why) => (None, Some(why)),
            };
            hooks.push(HookStatus { name, how, why_not });
        }

        let logger = if options.kernel_log { EbpfLogger::init(&mut ebpf).ok() } else { None };
        let ring = take_map(&mut ebpf, "EVENTS")?;
        let counters = take_map(&mut ebpf, "COUNTERS")?;
        Ok(Self { ring, counters, logger, programs: ebpf, hooks, warnings, reasons })
    }

    /// The next event's bytes, if any is there.
    pub fn next_event(&mut self) -> Option<impl std::ops::Deref<Target = [u8]> + '_> {
        self.ring.next()
    }

    /// Readable when events are waiting.
    pub fn event_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }

    /// Readable when the kernel half has log lines waiting (`-vv`).
    pub fn log_fd(&self) -> Option<RawFd> {
        self.logger.as_ref().map(AsRawFd::as_raw_fd)
    }

    /// Passes waiting log lines of the kernel half on to the logger.
    pub fn flush_log(&mut self) {
        if let Some(logger) = &mut self.logger {
            logger.flush();
        }
    }

    /// Reads the counters; zeros where the map cannot be read.
    pub fn counters(&self) -> Counters {
        let read = |index: u32| self.counters.get(&index, 0).map_or(0, |values| values.iter().fold(0, |a: u64, b| a.wrapping_add(*b)));
        let mut lost_by_hook = [0; hook::COUNT];
        for (index, lost) in (0..).zip(&mut lost_by_hook) {
            *lost = read(index);
        }
        Counters {
            lost_by_hook,
            lost_records: read(counter::LOST_RECORDS),
            orderly: read(counter::ORDERLY),
            untracked: read(counter::UNTRACKED),
            seeded: read(counter::SEEDED),
            skipped: TRACEPOINTS.iter().map(|name| (*name, self.skipped(name).unwrap_or(0))).collect(),
        }
    }

    /// The programs that the kernel has accepted, by name.
    pub fn programs(&self) -> Vec<ProgramFacts> {
        let accepted = self.programs.programs().filter_map(|(name, program)| Some((name, program.info().ok()?)));
        let mut facts: Vec<_> = accepted
            .map(|(name, info)| ProgramFacts {
                name: name.to_owned(),
                verified_instructions: info.verified_instruction_count(),
                translated_bytes: info.size_translated(),
            })
            .collect();
        facts.sort_by(|a, b| a.name.cmp(&b.name));
        facts
    }

    /// Kernel memory that the maps and programs of this process take, the ring buffer above all.
    pub fn memory_bytes(&self) -> u64 {
        let objects = fs::read_dir("/proc/self/fdinfo").into_iter().flatten().flatten();
        let infos = objects.filter_map(|entry| fs::read_to_string(entry.path()).ok());
        infos.filter_map(|info| info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse::<u64>().ok())).sum()
    }

    /// `bpf_prog_show_fdinfo()` tells it.
    fn skipped(&self, name: &str) -> Option<u64> {
        let fd = self.programs.program(name)?.fd().ok()?.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
    }
}

fn take_map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProbeError> {
    ebpf.take_map(name)
        .ok_or_else(|| format!("map {name} is not in the object"))
        .and_then(|map| T::try_from(map).map_err(|error| error.to_string()))
        .map_err(|what| unusable(what, "the binary is damaged: build it again"))
}

fn attach_tracepoint(ebpf: &mut Ebpf, name: &str, btf: &Btf) -> Result<&'static str, String> {
    let program: &mut BtfTracePoint = program(ebpf, name)?;
    program.load(name, btf).map_err(explain)?;
    program.attach().map_err(explain)?;
    Ok("tp_btf")
}

fn attach_getsockopt(ebpf: &mut Ebpf) -> Result<&'static str, String> {
    let root = preflight::cgroup2_root().ok_or("the root of cgroup2 is not mounted")?;
    let cgroup = File::open(&root).map_err(|error| format!("cannot open {}: {error}", root.display()))?;
    let program: &mut CgroupSockopt = program(ebpf, "getsockopt")?;
    program.load().map_err(|error| {
        let refused = matches!(&error, ProgramError::LoadError { io_error, .. } if io_error.raw_os_error() == Some(libc::EPERM));
        let why = explain(error);
        if refused { format!("{why}: it needs CAP_NET_ADMIN") } else { why }
    })?;
    // A BPF link (5.7+) always shares the hook with other programs, and takes no mode.
    program.attach(cgroup, CgroupAttachMode::Single).map_err(explain)?;
    Ok("cgroup")
}

/// Runs the iterator over all descriptors once; what it finds goes straight into the socket table.
fn seed(ebpf: &mut Ebpf, btf: &Btf) -> Result<&'static str, String> {
    let program: &mut Iter = program(ebpf, "seed_owners")?;
    program.load("task_file", btf).map_err(explain)?;
    let link = program.attach().map_err(explain)?;
    let link = program.take_link(link).map_err(explain)?;
    let mut file = link.into_file().map_err(|error| chain(&error))?;
    file.read_to_end(&mut Vec::new()).map_err(|error| error.to_string())?;
    Ok("iter")
}

fn program<'a, T>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut T, String>
where
    &'a mut T: TryFrom<&'a mut aya::programs::Program, Error = ProgramError>,
{
    ebpf.program_mut(name).ok_or_else(|| format!("program {name} is not in the object"))?.try_into().map_err(explain)
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

fn chain(error: &dyn std::error::Error) -> String {
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

fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(4096)
}
