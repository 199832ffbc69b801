//! The licences of all that is linked in, in one file: each text once.

use std::{collections::BTreeMap, fmt::Write as _, fs};

use anyhow::{Context, Result, bail};

use super::components::Component;
use crate::host;

const HEAD: &str = "\
rsttrace is licensed under MIT or Apache-2.0, at your choice. Its kernel half, rsttrace-ebpf, is
under GPL-2.0 as well, because the kernel's helpers are.

The program is linked statically. It contains glibc, which is used here under the GNU Lesser General
Public License, version 2.1 or later: `cargo xtask dist` in rsttrace's source links it with any other
glibc. What else it contains, and the texts of all licences:

";

/// A text, and whose it is.
#[derive(Default)]
struct Text {
    text: String,
    whose: Vec<String>,
}

pub fn text(components: &[Component]) -> Result<String> {
    let mut all = HEAD.to_owned();
    // By their words: some differ in how they are wrapped only.
    let mut texts: BTreeMap<String, Text> = BTreeMap::new();
    for component in components {
        let Component { name, version, licence, repository, .. } = component;
        let _ = writeln!(all, "  {name} {version}: {licence}{}", repository.as_ref().map(|url| format!(", {url}")).unwrap_or_default());
        for text in texts_of(component)? {
            let words = text.split_whitespace().collect::<Vec<_>>().join(" ");
            let known = texts.entry(words).or_insert_with(|| Text { text, whose: Vec::new() });
            known.whose.push(name.clone());
            known.whose.dedup();
        }
    }
    let mut texts: Vec<Text> = texts.into_values().collect();
    texts.sort_by(|a, b| (b.whose.len(), &a.whose).cmp(&(a.whose.len(), &b.whose)));
    for Text { text, whose } in texts {
        let _ = write!(all, "\n{}\n{}\n\n{}\n", "-".repeat(100), wrapped(&whose), text.trim_matches('\n'));
    }
    Ok(all)
}

/// Names, 100 columns wide.
fn wrapped(names: &[String]) -> String {
    let mut lines = String::new();
    let mut width = 0;
    for (number, name) in names.iter().enumerate() {
        let comma = if number + 1 < names.len() { "," } else { ":" };
        if width > 0 && width + name.len() + 2 > 100 {
            lines.push('\n');
            width = 0;
        }
        let space = if width > 0 { " " } else { "" };
        let _ = write!(lines, "{space}{name}{comma}");
        width += space.len() + name.len() + 1;
    }
    lines
}

fn texts_of(component: &Component) -> Result<Vec<String>> {
    let read = |file: &std::path::PathBuf| fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()));
    if !component.texts.is_empty() {
        return component.texts.iter().map(read).collect();
    }
    // Some leave the text to be known. Apache's names nobody; MIT's does, and who holds the copyright is as good as it is told.
    let Component { name, licence, authors, .. } = component;
    if licence.split(" OR ").any(|one| one == "Apache-2.0") {
        return Ok(vec![read(&host::root().join("LICENSE-APACHE"))?]);
    }
    if !licence.split(" OR ").any(|one| one == "MIT") || authors.is_empty() {
        bail!("{name} has no file with its licence ({licence}); add what to do then to xtask/src/dist/licences.rs");
    }
    let holders = format!("Copyright (c) {}", authors.join(", "));
    let ours = read(&host::root().join("LICENSE-MIT"))?;
    let lines = ours.lines().map(|line| if line.starts_with("Copyright") { &holders } else { line });
    Ok(vec![lines.collect::<Vec<_>>().join("\n")])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dist::components;

    #[test]
    fn all_that_is_linked_in_has_its_licence() {
        if host::find("dpkg-query").is_none() {
            return; // Packages are made on Debian only.
        }
        let components = components::of_binary().expect("components");
        let text = text(&components).expect("a licence for each");
        for words in ["Permission is hereby granted", "Apache License", "GNU LESSER GENERAL PUBLIC LICENSE", "GNU GENERAL PUBLIC LICENSE"] {
            assert!(text.contains(words), "{words}");
        }
    }

    #[test]
    fn names_are_wrapped() {
        let names = ["abcdefghij".repeat(5), "k".repeat(48), "l".repeat(2)];
        assert_eq!(wrapped(&names), format!("{},\n{}, {}:", names[0], names[1], names[2]));
    }
}
