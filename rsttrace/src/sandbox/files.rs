//! Landlock: no file, no network, no process beyond what is named here.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, NetPort, PathBeneath, Ruleset, RulesetAttr as _,
    RulesetCreated, RulesetCreatedAttr as _, RulesetError, RulesetStatus, Scope, path_beneath_rules,
};

/// The newest ABI whose rights are asked for; older kernels enforce what they know.
const ABI: ABI = ABI::V10;

/// From now on only files below `readable` can be opened, for reading; what is open stays open.
/// Nothing can be made, executed, connected, bound, or signalled beyond this process.
///
/// Returns the ABI that is enforced, for people.
///
/// # Errors
/// Why it is not, in words.
pub fn only_read_below(readable: &[&str]) -> Result<String, String> {
    only_read_below_and_connect_to(readable, &[])
}

/// The same, but sockets may connect and send to these ports.
///
/// # Errors
/// As above.
pub fn only_read_below_and_connect_to(readable: &[&str], ports: &[u16]) -> Result<String, String> {
    let enforced = restrict(readable, ports).map_err(|error| error.to_string())?;
    match (enforced.ruleset, enforced.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => Err("not enabled (lsm= on the kernel's command line)".to_owned()),
        (RulesetStatus::NotEnforced, _) => Err("not in this kernel".to_owned()),
        (_, LandlockStatus::Available { effective_abi, .. }) => Ok(format!("ABI {}", effective_abi as i32)),
        (_, _) => Ok("enforced".to_owned()),
    }
}

/// From now on files can be opened for writing, made, renamed and removed in this directory, and nowhere else.
///
/// # Errors
/// Why it is not so, in words.
pub fn only_make_in(directory: BorrowedFd<'_>) -> Result<(), String> {
    let rights = AccessFs::WriteFile | AccessFs::MakeReg | AccessFs::RemoveFile;
    let rule = PathBeneath::new(directory, rights);
    ruleset()
        .and_then(|ruleset| ruleset.add_rule(rule))
        .and_then(|ruleset| ruleset.restrict_self())
        .map(|_| ())
        .map_err(|error| error.to_string())
}

fn restrict(readable: &[&str], ports: &[u16]) -> Result<landlock::RestrictionStatus, RulesetError> {
    let to = AccessNet::ConnectTcp | AccessNet::ConnectSendUdp;
    // Whoever sends a datagram has a port of the kernel's choice.
    let from = ports.first().map(|_| NetPort::new(0, AccessNet::BindUdp));
    ruleset()?
        .add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?
        .add_rules(ports.iter().map(|port| NetPort::new(*port, to)).chain(from).map(Ok::<_, RulesetError>))?
        .restrict_self()
}

/// Allows nothing yet.
fn ruleset() -> Result<RulesetCreated, RulesetError> {
    Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(ABI))?
        .handle_access(AccessNet::from_all(ABI))?
        .scope(Scope::from_all(ABI))?
        .create()
}
