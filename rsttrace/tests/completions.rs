//! Completions come from the command line's own definition; this keeps docs/completions true.
//! `UPDATE=1 cargo test -p rsttrace --test completions` writes them anew.
//!
//! clap_complete leaves three things out: the command after `--`, in fish the values of options beside subcommands
//! (its guard gives up where the last option waits for its value), and in fish the words after a subcommand. They are
//! added here. tests/tests/completions.rs shows that each shell completes all that.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use clap::{Arg, ArgGroup, Command, CommandFactory as _};
use clap_complete::{Generator as _, Shell};
use rsttrace::cli::Cli;

const BASH: &str = r#"
    for ((i = 1; i < COMP_CWORD; i++)); do
        if [[ ${COMP_WORDS[i]} == -- ]] && declare -F _command_offset >/dev/null; then
            _command_offset $((i + 1))
            return
        fi
    done
"#;

const ZSH: &str = r#"
    local separator=${words[(i)--]}
    if (( separator < CURRENT )); then
        shift $separator words
        (( CURRENT -= separator ))
        _normal
        return
    fi
"#;

const FISH: &str = r#"
function __fish_rsttrace_needs_command
    set -l words (commandline -opc)
    contains -- -- $words
    and return 1
    # An option that waits for its value is no whole one.
    argparse -s (__fish_rsttrace_global_optspecs) -- $words[2..] 2>/dev/null
    or argparse -s (__fish_rsttrace_global_optspecs) -- $words[2..-2] 2>/dev/null
    or return
    set -q argv[1]
    or return 0
    echo $argv[1]
    return 1
end

function __fish_rsttrace_command
    set -l words (commandline -opc)
    set -l separator (contains --index -- -- $words)
    complete --do-complete (string join ' ' -- (string escape -- $words[(math $separator + 1)..]) (commandline -ct))
end
complete -c rsttrace -n "contains -- -- (commandline -opc)" -f -a "(__fish_rsttrace_command)"
complete -c rsttrace -n "__fish_rsttrace_using_subcommand explain" -f -a "(rsttrace explain | string match -r '^[-0-9a-z]+  .*' | string replace -r '  +' \t)"
"#;

/// What shells are told: neither hidden options nor the command after `--`, which would be counted as a word before
/// the subcommand.
fn command() -> Command {
    let whole = Cli::command();
    let (told, untold): (Vec<&Arg>, Vec<&Arg>) = whole.get_arguments().partition(|arg| !arg.is_hide_set() && !arg.is_last_set());
    Command::new("rsttrace")
        .version("")
        .disable_help_subcommand(true)
        .args(told)
        // Empty ones: others name what they cannot be used with.
        .groups(untold.into_iter().map(|arg| ArgGroup::new(arg.get_id())))
        .subcommands(whole.get_subcommands())
}

fn script(shell: Shell) -> String {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command(), "rsttrace", &mut script);
    let script = String::from_utf8(script).unwrap();
    let begin = "_rsttrace() {\n";
    let at_first = |words: &str| {
        assert!(script.contains(begin), "clap_complete's function is called otherwise");
        script.replacen(begin, &format!("{begin}{}", &words[1..]), 1)
    };
    match shell {
        Shell::Bash => at_first(BASH),
        Shell::Zsh => at_first(ZSH),
        _ => script + FISH,
    }
}

#[test]
fn the_completions_are_what_the_command_line_says() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/completions");
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = script(shell);
        let name = shell.file_name("rsttrace");
        let path = directory.join(&name);
        if std::env::var_os("UPDATE").is_some() {
            fs::write(&path, &script).unwrap();
        }
        let there = fs::read_to_string(&path).unwrap_or_default();
        assert!(there == script, "docs/completions/{name} is out of date: UPDATE=1 cargo test -p rsttrace --test completions");
    }
}
