//! Processes whose HTTP is looked at: they and their descendants. User space chooses them by name; here
//! children inherit, and who becomes another program is told. Attached with `--http` only.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use rsttrace_common::{ExecEvent, hook, kind};

use crate::{
    emit, http,
    settings::OFFSETS,
    sock::{now_ns, peek},
};

/// `void (struct task_struct *parent, struct task_struct *child)`, before the child runs.
#[btf_tracepoint(function = "sched_process_fork")]
fn sched_process_fork(ctx: BtfTracePointContext) -> i32 {
    let parent: u32 = peek(ctx.arg(0), &OFFSETS.task_struct__tgid);
    let child: u32 = peek(ctx.arg(1), &OFFSETS.task_struct__tgid);
    // Else it is a thread. Whoever had this number before is forgotten too.
    if child != parent {
        http::choose(child, http::is_chosen(parent));
    }
    0
}

/// `void (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, with the new name.
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let tgid: u32 = peek(ctx.arg(0), &OFFSETS.task_struct__tgid);
    if http::is_chosen(tgid) {
        return 0;
    }
    let Some(mut event) = emit::reserve::<ExecEvent>(&ctx, hook::SCHED_PROCESS_EXEC) else { return 0 };
    // SAFETY: room for one ExecEvent, of which every byte is written here.
    unsafe { event.as_mut_ptr().write(ExecEvent { header: emit::header(kind::EXEC, now_ns()), tgid, pad: 0 }) };
    event.submit(0);
    0
}
