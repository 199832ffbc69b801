//! `cgroup/getsockopt` on the root of cgroup2: getsockopt(SO_ERROR) takes the error away as a
//! receive would.

use aya_ebpf::{macros::cgroup_sockopt, programs::SockoptContext};
use rsttrace_common::hook;

use super::report_observed;
use crate::sock;
const SOL_SOCKET: i32 = 1;
const SO_ERROR: i32 = 4;
/// Larger options than a page are handed to programs cut, and must be passed on untouched.
const PAGE_SIZE: i32 = 4096;

/// Runs after the kernel's own getsockopt; must return 1.
#[cgroup_sockopt(getsockopt)]
fn getsockopt(ctx: SockoptContext) -> i32 {
    // SAFETY: the context is valid; the verifier checks each access.
    unsafe {
        let opt = ctx.sockopt;
        if (*opt).optlen > PAGE_SIZE {
            (*opt).optlen = 0;
            return 1;
        }
        if (*opt).level != SOL_SOCKET || (*opt).optname != SO_ERROR {
            return 1;
        }
        let value = (*opt).__bindgen_anon_2.optval.cast::<u8>();
        let end = (*opt).__bindgen_anon_3.optval_end.cast::<u8>();
        if value.add(4) > end {
            return 1;
        }
        let errno = value.cast::<i32>().read();
        let sk = (*opt).__bindgen_anon_1.sk;
        if errno > 0 && !sk.is_null() {
            let held = sock::plain(sk.cast());
            let tcp = sock::tcp_of_plain(held);
            if tcp != 0 {
                report_observed(&ctx, hook::GETSOCKOPT, tcp, held, errno);
            }
        }
    }
    1
}
