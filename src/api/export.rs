//! Flows as JSON lines in a file: rotated by size, so many files kept, with a mask of fields.
//!
//! The lines are those of `sluice observe -o json` (Hubble's form). Rotated files are `NAME.1` (newest), `NAME.2` ...

use std::fs::{File, OpenOptions};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde_json::{Map, Value};

use super::flow_json;
use super::hubble::convert::Naming;
use crate::flow::Flow;

/// Fields that are kept: `source.namespace`, `verdict`. No field at all means everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mask(Vec<Vec<String>>);

/// A mask names no field.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?}: expected a field of a flow such as verdict or source.namespace")]
pub struct MaskError(String);

impl FromStr for Mask {
    type Err = MaskError;

    /// Comma separated.
    fn from_str(text: &str) -> Result<Mask, MaskError> {
        let field = |field: &str| {
            let path: Vec<String> = field.trim().split('.').map(str::to_owned).collect();
            let is_name = |part: &String| {
                !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
            };
            if path.iter().all(is_name) { Ok(path) } else { Err(MaskError(field.to_owned())) }
        };
        text.split(',')
            .filter(|field| !field.trim().is_empty())
            .map(field)
            .collect::<Result<_, _>>()
            .map(Mask)
    }
}

impl Mask {
    /// What is left of a flow's members.
    fn apply(&self, flow: &Value) -> Value {
        let mut kept = Value::Object(Map::new());
        for path in &self.0 {
            let pointer = format!("/{}", path.join("/"));
            if let Some(value) = flow.pointer(&pointer) {
                put(&mut kept, path, value.clone());
            }
        }
        kept
    }
}

fn put(into: &mut Value, path: &[String], value: Value) {
    let Value::Object(members) = into else { return };
    match path {
        [] => {}
        [last] => {
            members.insert(last.clone(), value);
        }
        [first, rest @ ..] => {
            put(members.entry(first.clone()).or_insert_with(|| Value::Object(Map::new())), rest, value);
        }
    }
}

/// One line, without its end.
pub fn line(flow: &Flow, naming: &Naming, mask: &Mask) -> String {
    let mut whole = flow_json::to_json(flow, naming);
    if !mask.0.is_empty()
        && let Some(inner) = whole.get_mut("flow")
    {
        *inner = mask.apply(inner);
    }
    whole.to_string()
}

/// A file that is never longer than `most` bytes and has `files` older ones beside it.
#[derive(Debug)]
pub struct Rotating {
    path: PathBuf,
    most: u64,
    files: usize,
    file: Option<BufWriter<File>>,
    length: u64,
}

impl Rotating {
    pub fn new(path: PathBuf, most: u64, files: usize) -> Rotating {
        Rotating { path, most: most.max(1), files, file: None, length: 0 }
    }

    /// Appends a line.
    ///
    /// # Errors
    /// The file cannot be opened, written or renamed; the next line tries again.
    pub fn write(&mut self, line: &str) -> std::io::Result<()> {
        let length = line.len() as u64 + 1;
        if self.file.is_none() {
            self.open()?;
        }
        if self.length > 0 && self.length + length > self.most {
            self.rotate()?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let written = file.write_all(line.as_bytes()).and_then(|()| file.write_all(b"\n"));
        match written {
            Ok(()) => self.length += length,
            // A half line must not have a whole one behind it.
            Err(_) => self.file = None,
        }
        written
    }

    /// Hands what is buffered to the file.
    ///
    /// # Errors
    /// As [`Rotating::write`].
    pub fn flush(&mut self) -> std::io::Result<()> {
        let flushed = self.file.as_mut().map_or(Ok(()), |file| file.flush());
        if flushed.is_err() {
            self.file = None;
        }
        flushed
    }

    fn open(&mut self) -> std::io::Result<()> {
        let file = OpenOptions::new().create(true).append(true).mode(0o600).open(&self.path)?;
        self.length = file.metadata()?.len();
        self.file = Some(BufWriter::with_capacity(64 * 1024, file));
        Ok(())
    }

    fn rotate(&mut self) -> std::io::Result<()> {
        self.flush()?;
        self.file = None;
        for number in (1..self.files).rev() {
            rename(&older(&self.path, number), &older(&self.path, number + 1))?;
        }
        if self.files == 0 {
            std::fs::remove_file(&self.path)?;
        } else {
            rename(&self.path, &older(&self.path, 1))?;
        }
        self.open()
    }
}

fn older(path: &Path, number: usize) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{number}"));
    PathBuf::from(name)
}

fn rename(from: &Path, to: &Path) -> std::io::Result<()> {
    match std::fs::rename(from, to) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::flow::tests::flow;

    fn naming() -> Naming {
        Naming { cluster: "default".into() }
    }

    #[test]
    fn a_mask_keeps_what_it_names() {
        let mask: Mask = "verdict, source.namespace,source.pod_name,nothing".parse().unwrap();
        let line: Value = serde_json::from_str(&line(&flow(80), &naming(), &mask)).unwrap();
        assert_eq!(
            line["flow"],
            serde_json::json!({"verdict": "FORWARDED", "source": {"namespace": "shop", "pod_name": "frontend"}})
        );
        assert!(line["time"].is_string() && line["node_name"] == "node1");
        assert!("a..b".parse::<Mask>().is_err() && "a b".parse::<Mask>().is_err());
        let whole: Value =
            serde_json::from_str(&super::line(&flow(80), &naming(), &Mask::default())).unwrap();
        assert_eq!(whole, flow_json::to_json(&flow(80), &naming()));
    }

    #[test]
    fn files_rotate_by_size_and_the_oldest_goes() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("flows.log");
        let mut file = Rotating::new(path.clone(), 10, 2);
        for number in 0..10 {
            file.write(&format!("{number:04}")).unwrap();
        }
        file.flush().unwrap();
        let read = |path: &Path| std::fs::read_to_string(path).unwrap();
        assert_eq!(read(&path), "0008\n0009\n");
        assert_eq!(read(&older(&path, 1)), "0006\n0007\n");
        assert_eq!(read(&older(&path, 2)), "0004\n0005\n");
        assert!(!older(&path, 3).exists());
        // A restart goes on where it stopped.
        drop(file);
        let mut file = Rotating::new(path.clone(), 15, 2);
        file.write("0010").unwrap();
        file.flush().unwrap();
        assert_eq!(read(&path), "0008\n0009\n0010\n");
    }
}
