//! Capabilities of the calling thread. The process has only one when this is called.

use rustix::{
    io,
    thread::{CapabilitySet, CapabilitySets, capabilities, clear_ambient_capability_set, set_capabilities, set_no_new_privs},
};

/// Gives up all capabilities but those of `kept` that are held, for good: an exec cannot bring
/// them back either.
///
/// # Errors
/// What the kernel refuses.
pub fn keep_only(kept: CapabilitySet) -> io::Result<()> {
    // Without it, an exec as root would take capabilities from the bounding set again.
    set_no_new_privs(true)?;
    let kept = capabilities(None)?.permitted & kept;
    clear_ambient_capability_set()?;
    set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: CapabilitySet::empty() })
}

/// Keeps the least with which `works` says yes: nothing, `CAP_BPF`, or, where a process has BPF
/// by way of it, `CAP_SYS_ADMIN`. Tried and not concluded from the kernel's version, because
/// distributions carry the change backwards and sysctls matter.
///
/// # Errors
/// What the kernel refuses.
pub fn keep_least(works: impl Fn() -> bool) -> io::Result<CapabilitySet> {
    let held = capabilities(None)?;
    for tried in [CapabilitySet::empty(), CapabilitySet::BPF, CapabilitySet::SYS_ADMIN] {
        let effective = held.permitted & tried;
        set_capabilities(None, CapabilitySets { effective, ..held })?;
        if works() {
            keep_only(effective)?;
            return Ok(effective);
        }
    }
    // It is not for want of a capability.
    keep_only(CapabilitySet::empty())?;
    Ok(CapabilitySet::empty())
}

/// Runs `work` without the capabilities that open files to which the user has no right.
///
/// # Errors
/// What the kernel refuses; `work` is not run then.
pub fn without_rights_to_files<T>(work: impl FnOnce() -> T) -> io::Result<T> {
    let held = capabilities(None)?;
    let effective = held.effective - (CapabilitySet::DAC_READ_SEARCH | CapabilitySet::DAC_OVERRIDE);
    set_capabilities(None, CapabilitySets { effective, ..held })?;
    let result = work();
    set_capabilities(None, held)?;
    Ok(result)
}
