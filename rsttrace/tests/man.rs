//! The man page comes from the command line's own definition; this keeps docs/rsttrace.1 true.
//! `UPDATE=1 cargo test -p rsttrace --test man` writes it anew.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::{fs, path::Path};

use clap::CommandFactory as _;
use rsttrace::cli::Cli;

#[test]
fn the_man_page_is_what_the_command_line_says() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs");
    let mut page = Vec::new();
    let man = clap_mangen::Man::new(Cli::command()).manual("User Commands").source(concat!("rsttrace ", env!("CARGO_PKG_VERSION")));
    man.render_title(&mut page).unwrap();
    man.render_name_section(&mut page).unwrap();
    page.extend(synopsis().into_bytes());
    page.extend(fs::read(docs.join("man/description.roff")).unwrap());
    man.render_options_section(&mut page).unwrap();
    page.extend(fs::read(docs.join("man/sections.roff")).unwrap());

    let text = String::from_utf8_lossy(&page);
    for name in options() {
        assert!(text.contains(&name.replace('-', "\\-")), "{name} is in --help and not in the man page");
    }

    let path = docs.join("rsttrace.1");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read(&path).unwrap_or_default();
    assert!(there == page, "docs/rsttrace.1 is out of date: UPDATE=1 cargo test -p rsttrace --test man");
}

/// A line for each command, as its --help has it.
fn synopsis() -> String {
    let mut cli = Cli::command();
    cli.build();
    let mut usages = vec![cli.render_usage().to_string()];
    usages.extend(cli.get_subcommands_mut().map(|task| task.render_usage().to_string()));
    // Of the first, what stands below it are the others.
    let lines = usages.iter().filter_map(|usage| usage.lines().next()?.strip_prefix("Usage: "));
    let lines: Vec<String> = lines.map(|line| line.replace('-', "\\-").replace('<', "\\fI").replace('>', "\\fR")).collect();
    format!(".SH SYNOPSIS\n{}\n", lines.join("\n.br\n"))
}

/// Every option of every command that --help shows.
fn options() -> Vec<String> {
    let mut cli = Cli::command();
    cli.build();
    let arguments = cli.get_arguments().chain(cli.get_subcommands().flat_map(clap::Command::get_arguments));
    arguments.filter(|arg| !arg.is_hide_set()).filter_map(|arg| Some(format!("--{}", arg.get_long()?))).collect()
}
