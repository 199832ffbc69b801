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
    man.render_synopsis_section(&mut page).unwrap();
    page.extend(fs::read(docs.join("man/description.roff")).unwrap());
    man.render_options_section(&mut page).unwrap();
    page.extend(fs::read(docs.join("man/sections.roff")).unwrap());

    let path = docs.join("rsttrace.1");
    if std::env::var_os("UPDATE").is_some() {
        fs::write(&path, &page).unwrap();
    }
    let there = fs::read(&path).unwrap_or_default();
    assert!(there == page, "docs/rsttrace.1 is out of date: UPDATE=1 cargo test -p rsttrace --test man");
}
