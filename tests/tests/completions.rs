//! The completions, in the shells that they are for: each line is completed by a real one.

use std::{
    env,
    path::{Path, PathBuf},
    process::Command,
};

use rsttrace_tests::{binary, require_tool};

/// What has been typed, and what its last word becomes.
const LINES: [(&str, &str); 13] = [
    ("rsttrace doc", "doctor"),
    ("rsttrace --rate", "--rate-limit"),
    ("rsttrace --harm po", "possible"),
    ("rsttrace --harm lost --cause linger-", "linger-zero"),
    ("rsttrace --end reset-s", "reset-sent"),
    ("rsttrace --error-log /proc/self/statu", "/proc/self/status"),
    ("rsttrace explain accep", "accept-queue-overflow"),
    ("rsttrace correlate --even", "--events"),
    ("rsttrace correlate --log-format hap", "haproxy"),
    ("rsttrace doctor --bun", "--bundle"),
    ("rsttrace doctor --without iter", "iter/task_file"),
    ("rsttrace replay --harm po", "possible"),
    ("rsttrace -p nginx -- tail -n 1 /proc/self/statu", "/proc/self/status"),
];

fn completions() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/completions").canonicalize().expect("docs/completions")
}

/// Has a shell complete each line by a script of its own, which gets the completions' directory and the line as
/// arguments and prints what the last word may become, one a line.
fn complete(shell: &str, flags: &[&str], script: &str) {
    let directory = binary().parent().expect("a directory").to_owned();
    let path = env::join_paths([directory].into_iter().chain(env::split_paths(&env::var_os("PATH").unwrap_or_default())));
    let path = path.expect("PATH");
    for (line, expected) in LINES {
        let mut command = Command::new(shell);
        command.args(flags).arg(script).args((shell == "bash").then_some("bash")).arg(completions()).arg(line);
        command.env("PATH", &path).env("TERM", "vt100");
        let output = command.output().expect(shell);
        let (said, complained) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        // fish has a description behind a tab.
        let words: Vec<&str> = said.lines().map(|line| line.split('\t').next().unwrap_or_default().trim()).collect();
        assert_eq!(words, [expected], "{shell}: {line}\n{complained}");
        assert_eq!(complained, "", "{shell}: {line}");
    }
}

#[test]
fn bash_completes() {
    require_tool!("bash");
    complete(
        "bash",
        &["--norc", "-c"],
        r#"
        source "$1/rsttrace.bash"
        [[ $(complete -p rsttrace) == *"-F _rsttrace "* ]] || exit
        read -ra COMP_WORDS <<<"$2"
        COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        _rsttrace rsttrace "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
        # What is left to the shell's own completion: names of files.
        ((${#COMPREPLY[@]})) && [[ -n ${COMPREPLY[0]} ]] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
        printf '%s\n' "${COMPREPLY[@]}"
        "#,
    );
}

#[test]
fn fish_completes() {
    require_tool!("fish");
    complete("fish", &["--no-config", "-c"], "source $argv[1]/rsttrace.fish; complete --do-complete $argv[2]");
}

/// zsh completes nowhere but in its line editor, which wants a terminal.
#[test]
fn zsh_completes() {
    require_tool!("zsh");
    complete(
        "zsh",
        &["-f", "-c"],
        r#"
        zmodload zsh/zpty
        zpty shell zsh -f -i
        zpty -w shell "fpath=(${(q)0} \$fpath); autoload -U compinit; compinit -u -D;" \
            "tell() { print -r -- \"<<<\${\${(z)BUFFER}[-1]%=}>>>\" }; zle -N tell; bindkey '^X' tell; print rea''dy"
        zpty -r shell out '*ready*'
        zpty -w -n shell "$1"$'\t\C-x'
        zpty -r shell out '*>>>*'
        print -r -- ${${out##*<<<}%%>>>*}
        "#,
    );
}
