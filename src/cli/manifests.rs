//! Manifests of the command line as one transaction: the files are joined, and what the agent says about a
//! line of the whole is said about the line of the file that the person wrote.

use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::Context as _;

/// All files in one text; each starts a document of its own.
#[derive(Debug, Default)]
pub struct Manifests {
    text: String,
    /// Name of each file, and how many lines of the text are above its first.
    files: Vec<(String, u32)>,
    lines: u32,
}

impl Manifests {
    /// Reads files, the manifests below directories, and standard input for `-`.
    pub fn read(paths: &[PathBuf]) -> anyhow::Result<Manifests> {
        let mut manifests = Manifests::default();
        for named in paths {
            for path in manifest_paths(named)? {
                if path == Path::new("-") {
                    let mut content = String::new();
                    std::io::stdin().read_to_string(&mut content).context("read standard input")?;
                    manifests.add("standard input", &content);
                } else {
                    let name = path.display().to_string();
                    let content = std::fs::read_to_string(&path).with_context(|| format!("read {name}"))?;
                    manifests.add(&name, &content);
                }
            }
        }
        Ok(manifests)
    }

    fn add(&mut self, name: &str, content: &str) {
        self.text.push_str("---\n");
        self.lines += 1;
        self.files.push((name.to_owned(), self.lines));
        self.text.push_str(content);
        if !content.ends_with('\n') {
            self.text.push('\n');
        }
        self.lines += u32::try_from(content.lines().count()).unwrap_or(u32::MAX - self.lines);
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// A message with files and lines instead of lines of the whole text: it may begin with `LINE:COLUMN: `
    /// and name another place by ` at :LINE:COLUMN`. One without positions is left as it is.
    pub fn place(&self, message: &str) -> String {
        let placed = self.at(message).unwrap_or_else(|| message.to_owned());
        match placed.split_once(" at :").and_then(|(before, other)| Some((before, self.at(other)?))) {
            Some((before, other)) => format!("{before} at {other}"),
            None => placed,
        }
    }

    /// Text that begins with a line of the whole text and a colon.
    fn at(&self, text: &str) -> Option<String> {
        let (line, rest) = text.split_once(':')?;
        let line: u32 = line.parse().ok()?;
        let (name, above) = self.files.iter().rev().find(|(_, above)| *above < line)?;
        Some(format!("{name}:{}:{rest}", line - above))
    }
}

/// The files that a path names: itself, or the manifests below a directory, in order.
pub fn manifest_paths(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_path_buf()]);
    }
    let mut found = Vec::new();
    for entry in std::fs::read_dir(path).with_context(|| format!("read {}", path.display()))? {
        let path = entry?.path();
        let yaml = path
            .extension()
            .is_some_and(|extension| ["yaml", "yml", "json"].iter().any(|known| extension == *known));
        if path.is_dir() {
            found.extend(manifest_paths(&path)?);
        } else if yaml {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_placed_in_the_file_that_has_it() {
        let mut manifests = Manifests::default();
        manifests.add("a.yaml", "kind: A\nspec: {}\n");
        manifests.add("b.yaml", "---\nkind: B\nspec:\n  ports: 7");
        assert_eq!(manifests.text(), "---\nkind: A\nspec: {}\n---\n---\nkind: B\nspec:\n  ports: 7\n");
        for (message, placed) in [
            ("3:1: A x: bad", "a.yaml:2:1: A x: bad"),
            ("8:10: B y: spec.ports: bad", "b.yaml:4:10: B y: spec.ports: bad"),
            ("7:1: A x: already defined at :2:1", "b.yaml:3:1: A x: already defined at a.yaml:1:1"),
            ("the map is full", "the map is full"),
            ("A x: 7: odd", "A x: 7: odd"),
        ] {
            assert_eq!(manifests.place(message), placed);
        }
    }
}
