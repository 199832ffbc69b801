//! Everything that touches the kernel: preflight, offsets, loading, attaching, the ring buffer.
//! The only module that knows aya.

pub mod attach;
pub mod btf;
mod chosen;
mod offsets;
pub mod preflight;

use std::{
    fs,
    os::fd::{AsFd as _, AsRawFd, RawFd},
    path::Path,
    rc::Rc,
};

use aya::{
    Btf, Ebpf, EbpfLoader, Pod, VerifierLogLevel,
    maps::{Map, MapData, PerCpuArray, RingBuf},
};
use aya_log::EbpfLogger;
use rsttrace_common::{MAX_PROCESSES, Settings, counter, hook};
use thiserror::Error;

use self::{
    attach::{Attacher, chain},
    btf::KernelBtf,
    chosen::Chosen,
};

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
    /// Hooks not to attach, and ways not to attach by, by their names.
    pub without: Vec<String>,
    /// Where nothing else shows what receives and sends return: the exit of every system call.
    pub syscall_hooks: bool,
    /// Log calls of the kernel half are compiled in.
    pub kernel_log: bool,
    /// [`Probe::choose`] is to name processes, whose events are kept before others.
    pub choice: Option<Choice>,
    /// Look at the HTTP of the chosen processes.
    pub http: bool,
}

/// How processes are chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Choice {
    /// By their numbers.
    ByNumber,
    /// By what they execute, so that each new program must be asked about.
    ByProgram,
}

/// How one hook is attached.
#[derive(Clone, Debug)]
pub struct HookStatus {
    pub name: &'static str,
    /// `None`: not attached.
    pub how: Option<&'static str>,
    /// Only more evidence: few miss it.
    pub extra: bool,
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
    counters: Rc<PerCpuArray<MapData, u64>>,
    logger: Option<EbpfLogger<&'static dyn log::Log>>,
    programs: Ebpf,
    /// Hooks and their programs.
    attached: Vec<(&'static str, &'static str)>,
    /// Where processes are chosen.
    chosen: Option<Chosen>,
    /// Every hook, attached or not.
    pub hooks: Vec<HookStatus>,
    /// One line each: what is missing and what it costs.
    pub warnings: Vec<String>,
    /// `enum sk_rst_reason` of this kernel, without its prefix.
    pub reasons: Vec<(i32, String)>,
}

/// `arch/x86/include/asm/page_64_types.h`, without KASAN. With FRED (6.9 and newer) the registers are
/// not saved at the very end; those kernels have the helper.
const THREAD_SIZE: u32 = 16 << 10;

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
        let buffer_bytes = options.buffer_bytes.max(page_size()).next_power_of_two();
        let settings = Settings {
            want_fin: options.want_fin.into(),
            has_task_pt_regs: has("BPF_FUNC_task_pt_regs").into(),
            pt_regs_on_stack: kernel.size("pt_regs").and_then(|bytes| THREAD_SIZE.checked_sub(bytes)).unwrap_or(0),
            has_reset_reason: (kernel.tracepoint_args("tcp_send_reset") >= Some(3)).into(),
            has_socket_cookie: kernel.has_function("bpf_get_socket_ptr_cookie").into(),
            own_tgid,
            http: options.http.into(),
            // The last quarter is for the chosen.
            shared_bytes: if options.choice.is_some() { buffer_bytes / 4 * 3 } else { 0 },
        };
        let reasons = kernel
            .enumerators("sk_rst_reason")
            .into_iter()
            .map(|(name, value)| (value, name.trim_start_matches("SK_RST_REASON_").to_owned()))
            .collect();

        let (offsets, settings) = (Frozen(offsets), Frozen(settings));
        let log_level: u8 = if options.kernel_log { aya_log::Level::Debug as u8 } else { 0 };
        let btf = Btf::from_sys_fs()
            .map_err(|error| unusable(format!("cannot parse the kernel's BTF: {error}"), "please report this kernel's version"))?;
        let mut ebpf = EbpfLoader::new()
            .btf(Some(&btf))
            .verifier_log_level(VerifierLogLevel::STATS)
            .override_global("OFFSETS", &offsets, true)
            .override_global("SETTINGS", &settings, true)
            .override_global(aya_log::LEVEL, &log_level, false)
            .map_max_entries("EVENTS", buffer_bytes)
            .map_max_entries("SOCKETS", options.max_sockets)
            // Tables that nobody uses should cost nothing.
            .map_max_entries("HTTP", if options.http { options.max_sockets } else { 1 })
            .map_max_entries("CHOSEN", if options.choice.is_some() { MAX_PROCESSES / 8 } else { 1 })
            .load(OBJECT)
            .map_err(|error| {
                unusable(
                    format!("cannot load the kernel half: {}", chain(&error)),
                    "before 5.11 the maps count against RLIMIT_MEMLOCK: raise it (ulimit -l unlimited) or run with CAP_SYS_RESOURCE",
                )
            })?;

        let mut attacher = Attacher { ebpf: &mut ebpf, btf: &btf, kernel: &kernel, options, programs: Vec::new() };
        let mut hooks = Vec::new();
        for hook in attach::hooks(&kernel, options) {
            let (how, why_not) = match attacher.attach(hook) {
                Ok(how) => (Some(how), None),
                Err(why) => (None, Some(why)),
            };
            match (hook.cost_of_missing, &why_not) {
                (Some(cost), Some(why)) if !hook.extra => warnings.push(format!("no {}: {why}; {cost}", hook.name)),
                (None, Some(why)) => {
                    return Err(unusable(
                        format!("cannot attach {}: {why}", hook.name),
                        "this hook is required: it needs CAP_BPF and CAP_PERFMON (try sudo) and a kernel of 5.10 or newer with CONFIG_DEBUG_INFO_BTF",
                    ));
                }
                _ => {}
            }
            hooks.push(HookStatus { name: hook.name, how, extra: hook.extra, why_not });
        }
        let attached = attacher.programs;
        // Megabytes that nobody needs any more, and that the allocator would keep.
        drop((btf, kernel));
        give_memory_back();

        let logger = if options.kernel_log { EbpfLogger::init(&mut ebpf).ok() } else { None };
        let ring = take_map(&mut ebpf, "EVENTS")?;
        let counters = Rc::new(take_map(&mut ebpf, "COUNTERS")?);
        if options.http {
            warnings.extend(blind_to_http(&hooks));
        }
        let chosen = match (options.choice, ebpf.map("CHOSEN")) {
            (Some(_), Some(Map::Array(table))) => {
                let refused = |error| unusable(format!("cannot map the table of chosen processes: {error}"), "trace all processes");
                Some(Chosen::map(table.fd().as_fd()).map_err(refused)?)
            }
            _ => None,
        };
        Ok(Self { ring, counters, logger, programs: ebpf, attached, chosen, hooks, warnings, reasons })
    }

    /// From now on this process, and children that it makes, are chosen, or not.
    pub fn choose(&self, tgid: u32, chosen: bool) {
        if let Some(table) = &self.chosen {
            table.set(tgid, chosen);
        }
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

    /// What tells how many events were lost, for whoever cannot reach the probe meanwhile.
    pub fn losses(&self) -> impl Fn() -> u64 + use<> {
        let counters = Rc::clone(&self.counters);
        move || (0..hook::COUNT as u32).map(|index| sum(&counters, index)).sum()
    }

    /// Reads the counters; zeros where the map cannot be read.
    pub fn counters(&self) -> Counters {
        let read = |index: u32| sum(&self.counters, index);
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
            skipped: by_hook(&self.attached, |program| self.skipped(program)),
        }
    }

    /// Whether the kernel lets this process read the counters.
    pub fn counters_can_be_read(&self) -> bool {
        self.counters.get(&0, 0).is_ok()
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
    fn skipped(&self, program: &str) -> Option<u64> {
        let fd = self.programs.program(program)?.fd().ok()?.as_fd().as_raw_fd();
        let info = fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).ok()?;
        info.lines().find_map(|line| line.strip_prefix("recursion_misses:"))?.trim().parse().ok()
    }
}

/// A counter over all CPUs; zero where the map cannot be read.
fn sum(counters: &PerCpuArray<MapData, u64>, index: u32) -> u64 {
    counters.get(&index, 0).map_or(0, |values| values.iter().fold(0, |a: u64, b| a.wrapping_add(*b)))
}

/// A return probe does not see what was moved.
fn blind_to_http(hooks: &[HookStatus]) -> Vec<String> {
    let sees = |hook: &HookStatus| matches!(hook.how, Some("tp_btf" | "fexit"));
    let blind = |hook: &&HookStatus| matches!(hook.name, "sock_recv_length" | "sock_send_length") && !sees(hook);
    hooks.iter().filter(blind).map(|hook| format!("--http needs {} by tp_btf or fexit: requests are not named", hook.name)).collect()
}

/// Sums by hook: a hook may have several programs, and what two hooks share is counted once.
fn by_hook(attached: &[(&'static str, &'static str)], skipped: impl Fn(&str) -> Option<u64>) -> Vec<(&'static str, u64)> {
    let mut sums: Vec<(&'static str, u64)> = Vec::new();
    for (at, (hook, program)) in attached.iter().enumerate() {
        let shared = attached[..at].iter().any(|(_, earlier)| earlier == program);
        let Some(n) = skipped(program).map(|n| if shared { 0 } else { n }) else { continue };
        match sums.iter_mut().find(|(known, _)| known == hook) {
            Some((_, sum)) => *sum += n,
            None => sums.push((hook, n)),
        }
    }
    sums
}

fn take_map<T: TryFrom<aya::maps::Map, Error = aya::maps::MapError>>(ebpf: &mut Ebpf, name: &str) -> Result<T, ProbeError> {
    ebpf.take_map(name)
        .ok_or_else(|| format!("map {name} is not in the object"))
        .and_then(|map| T::try_from(map).map_err(|error| error.to_string()))
        .map_err(|what| unusable(what, "the binary is damaged: build it again"))
}

/// What is free goes back to the kernel.
fn give_memory_back() {
    #[cfg(target_env = "gnu")]
    // SAFETY: no preconditions.
    unsafe {
        libc::malloc_trim(0);
    }
}

fn page_size() -> u32 {
    u32::try_from(rustix::param::page_size()).unwrap_or(4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skipped_runs_add_up_by_hook_and_no_program_counts_twice() {
        let attached = [("send", "sendmsg"), ("send", "sendpage"), ("v4", "shared"), ("v6", "shared"), ("old", "untold")];
        let skipped = |program: &str| match program {
            "sendmsg" => Some(5),
            "sendpage" => Some(2),
            "shared" => Some(3),
            _ => None,
        };
        assert_eq!(by_hook(&attached, skipped), [("send", 7), ("v4", 3), ("v6", 0)]);
    }
}
