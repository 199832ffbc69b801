//! The documentation that is installed: `docs/...`, as `--help` and the man page call it, below [`DIRECTORY`].

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};

use crate::host;

/// Below /usr.
pub const DIRECTORY: &str = "share/doc/rsttrace";

/// What is installed elsewhere, or made into something that is.
const NOT_READ_HERE: [&str; 3] = ["docs/man", "docs/completions", "docs/rsttrace.1"];

/// All files, `docs/...`, in order. Links between them hold, because they lie as they do in the source.
pub fn files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    collect(Path::new("docs"), &mut files)?;
    files.sort();
    Ok(files)
}

fn collect(directory: &Path, files: &mut Vec<PathBuf>) -> Result<()> {
    let there = host::root().join(directory);
    for entry in fs::read_dir(&there).with_context(|| format!("cannot read {}", there.display()))? {
        let entry = entry.with_context(|| format!("cannot read {}", there.display()))?;
        let file = directory.join(entry.file_name());
        if NOT_READ_HERE.iter().any(|other| file == Path::new(other)) {
            continue;
        }
        if entry.path().is_dir() { collect(&file, files)? } else { files.push(file) }
    }
    Ok(())
}

/// The documents that a text for readers names and that are not among `files`. A directory is there when something in it is.
pub fn missing(text: &str, files: &[PathBuf]) -> Vec<String> {
    // In roff a hyphen is escaped.
    let text = text.replace('\\', "");
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && !"/._-".contains(c)).map(|word| word.trim_end_matches(['.', '/']));
    let mut missing: Vec<String> =
        words.filter(|word| word.starts_with("docs/") && !files.iter().any(|file| file.starts_with(word))).map(str::to_owned).collect();
    missing.sort();
    missing.dedup();
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(file: &Path) -> String {
        fs::read_to_string(host::root().join(file)).unwrap()
    }

    #[test]
    fn what_help_and_the_man_page_name_is_installed() {
        let files = files().unwrap();
        assert!(files.contains(&"docs/causes/linger-zero.md".into()) && files.contains(&"docs/rsttrace.schema.json".into()), "{files:?}");
        for text in ["rsttrace/src/cli.rs", "docs/rsttrace.1"] {
            let text = read(Path::new(text));
            assert!(text.contains("docs/"));
            assert_eq!(missing(&text, &files), [""; 0]);
        }
        assert_eq!(missing("(docs/no\\-such.md, docs/json.md)", &files), ["docs/no-such.md"]);
    }

    #[test]
    fn links_hold_where_they_are_installed() {
        let files = files().unwrap();
        let mut broken = Vec::new();
        for file in files.iter().filter(|file| file.extension().is_some_and(|extension| extension == "md")) {
            for link in read(file).split("](").skip(1).filter_map(|rest| rest.split([')', '#']).next()) {
                let wanted = host::root().join(file).with_file_name(link).canonicalize();
                let is_there = |wanted: &Path| files.iter().any(|file| host::root().join(file).canonicalize().unwrap().starts_with(wanted));
                if !link.is_empty() && !link.contains("://") && !wanted.is_ok_and(|wanted| is_there(&wanted)) {
                    broken.push(format!("{}: {link}", file.display()));
                }
            }
        }
        assert_eq!(broken, [""; 0]);
    }
}
