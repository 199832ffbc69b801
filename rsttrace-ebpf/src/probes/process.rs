//! Processes that are chosen: they and their descendants. User space chooses them by name; here children
//! inherit, and who becomes another program is told. Attached only where processes are chosen.

use aya_ebpf::{macros::btf_tracepoint, programs::BtfTracePointContext};
use rsttrace_common::{ExecEvent, hook, kind};

use crate::{
    chosen::{choose, is_chosen},
    emit,
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
        choose(child, is_chosen(parent));
    }
    0
}

/// `void (struct task_struct *p, pid_t old_pid, struct linux_binprm *bprm)`, with the new name.
#[btf_tracepoint(function = "sched_process_exec")]
fn sched_process_exec(ctx: BtfTracePointContext) -> i32 {
    let tgid: u32 = peek(ctx.arg(0), &OFFSETS.task_struct__tgid);
    if is_chosen(tgid) {
        return 0;
    }
    let Some(mut event) = emit::reserve::<ExecEvent>(&ctx, hook::SCHED_PROCESS_EXEC, || false) else { return 0 };
    // SAFETY: room for one ExecEvent, of which every byte is written here.
    unsafe { event.as_mut_ptr().write(ExecEvent { header: emit::header(kind::EXEC, now_ns()), tgid, pad: 0 }) };
    event.submit(0);
    0
}
