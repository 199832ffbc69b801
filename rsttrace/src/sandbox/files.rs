//! Landlock: no file, no network, no process beyond what is named here.

use std::os::fd::BorrowedFd;

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, LandlockStatus, PathBeneath, Ruleset, RulesetAttr as _,
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
    let enforced = restrict(readable).map_err(|error| error.to_string())?;
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

fn restrict(readable: &[&str]) -> Result<landlock::RestrictionStatus, RulesetError> {
    ruleset()?.add_rules(path_beneath_rules(readable, AccessFs::ReadFile | AccessFs::ReadDir))?.restrict_self()
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
