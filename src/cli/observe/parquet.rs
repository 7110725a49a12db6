//! A Parquet file, as far as flows need one: flat, required columns of text and 64-bit numbers, plain encoding,
//! no compression (apache/parquet-format 2.x; the metadata is Thrift's compact protocol).

use super::columns::Cell;

const MAGIC: &[u8; 4] = b"PAR1";
/// Rows that are written together.
const GROUP: usize = 65_536;

// parquet.thrift
const INT64: i32 = 2;
const BYTE_ARRAY: i32 = 6;
const UTF8: i32 = 0;
const REQUIRED: i32 = 0;
const PLAIN: i32 = 0;
const RLE: i32 = 3;
const UNCOMPRESSED: i32 = 0;
const DATA_PAGE: i32 = 0;

/// The cells of a column in the current row group.
#[derive(Debug)]
pub enum Column {
    Text(Vec<String>),
    Number(Vec<i64>),
}

impl Column {
    fn kind(&self) -> i32 {
        match self {
            Column::Text(_) => BYTE_ARRAY,
            Column::Number(_) => INT64,
        }
    }

    /// The values in plain encoding; the column is empty afterwards.
    fn take(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Column::Text(texts) => {
                for text in texts.drain(..) {
                    bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(0).to_le_bytes());
                    bytes.extend_from_slice(text.as_bytes());
                }
            }
            Column::Number(numbers) => {
                for number in numbers.drain(..) {
                    bytes.extend_from_slice(&number.to_le_bytes());
                }
            }
        }
        bytes
    }
}

#[derive(Debug)]
struct Chunk {
    kind: i32,
    offset: i64,
    bytes: i64,
}

#[derive(Debug)]
struct Group {
    rows: i64,
    chunks: Vec<Chunk>,
}

/// See the module.
#[derive(Debug)]
pub struct Writer {
    columns: Vec<(String, Column)>,
    rows: usize,
    offset: usize,
    groups: Vec<Group>,
}

impl Writer {
    pub fn new(columns: impl Iterator<Item = (String, Column)>) -> Writer {
        Writer { columns: columns.collect(), rows: 0, offset: 0, groups: Vec::new() }
    }

    /// Adds a row; a full row group comes back as bytes.
    pub fn push(&mut self, cells: impl Iterator<Item = Cell>) -> Option<Vec<u8>> {
        for ((_, column), cell) in self.columns.iter_mut().zip(cells) {
            match (column, cell) {
                (Column::Text(texts), Cell::Text(text)) => texts.push(text),
                (Column::Number(numbers), Cell::Number(number)) => numbers.push(number),
                // A column has one kind of cells; this keeps rows whole whatever happens.
                (Column::Text(texts), Cell::Number(number)) => texts.push(number.to_string()),
                (Column::Number(numbers), Cell::Text(_)) => numbers.push(0),
            }
        }
        self.rows += 1;
        (self.rows == GROUP).then(|| self.group())
    }

    fn group(&mut self) -> Vec<u8> {
        let mut bytes = if self.offset == 0 { MAGIC.to_vec() } else { Vec::new() };
        let rows = self.rows;
        let mut chunks = Vec::new();
        for (_, column) in &mut self.columns {
            let begin = bytes.len();
            let kind = column.kind();
            let values = column.take();
            bytes.extend_from_slice(&page_header(values.len(), rows));
            bytes.extend_from_slice(&values);
            chunks.push(Chunk {
                kind,
                offset: (self.offset + begin) as i64,
                bytes: (bytes.len() - begin) as i64,
            });
        }
        self.offset += bytes.len();
        self.groups.push(Group { rows: rows as i64, chunks });
        self.rows = 0;
        bytes
    }

    /// What is left, and the footer.
    pub fn finish(mut self) -> Vec<u8> {
        let mut bytes = if self.rows > 0 || self.offset == 0 { self.group() } else { Vec::new() };
        let footer = self.footer();
        bytes.extend_from_slice(&footer);
        bytes.extend_from_slice(&u32::try_from(footer.len()).unwrap_or(0).to_le_bytes());
        bytes.extend_from_slice(MAGIC);
        bytes
    }

    /// `FileMetaData`.
    fn footer(&self) -> Vec<u8> {
        let mut thrift = Thrift::default();
        thrift.i32(1, 1);
        thrift.list(2, STRUCT, self.columns.len() + 1);
        // `SchemaElement`: the root, then the columns.
        thrift.element(|root| {
            root.text(4, "flows");
            root.i32(5, self.columns.len() as i32);
        });
        for (name, column) in &self.columns {
            thrift.element(|leaf| {
                leaf.i32(1, column.kind());
                leaf.i32(3, REQUIRED);
                leaf.text(4, name);
                if column.kind() == BYTE_ARRAY {
                    leaf.i32(6, UTF8);
                }
            });
        }
        thrift.i64(3, self.groups.iter().map(|group| group.rows).sum());
        thrift.list(4, STRUCT, self.groups.len());
        for group in &self.groups {
            thrift.element(|row_group| {
                row_group.list(1, STRUCT, group.chunks.len());
                for (chunk, (name, _)) in group.chunks.iter().zip(&self.columns) {
                    row_group.element(|column| {
                        column.i64(2, chunk.offset);
                        column.structure(3, |meta| {
                            meta.i32(1, chunk.kind);
                            meta.list(2, I32, 1);
                            meta.zigzag(PLAIN.into());
                            meta.list(3, BINARY, 1);
                            meta.bytes(name);
                            meta.i32(4, UNCOMPRESSED);
                            meta.i64(5, group.rows);
                            meta.i64(6, chunk.bytes);
                            meta.i64(7, chunk.bytes);
                            meta.i64(9, chunk.offset);
                        });
                    });
                }
                row_group.i64(2, group.chunks.iter().map(|chunk| chunk.bytes).sum());
                row_group.i64(3, group.rows);
            });
        }
        thrift.text(6, concat!("sluice ", env!("CARGO_PKG_VERSION")));
        thrift.stop();
        thrift.out
    }
}

/// `PageHeader` of a data page. Required columns have no levels.
fn page_header(bytes: usize, rows: usize) -> Vec<u8> {
    let mut thrift = Thrift::default();
    thrift.i32(1, DATA_PAGE);
    thrift.i32(2, bytes as i32);
    thrift.i32(3, bytes as i32);
    thrift.structure(5, |page| {
        page.i32(1, rows as i32);
        page.i32(2, PLAIN);
        page.i32(3, RLE);
        page.i32(4, RLE);
    });
    thrift.stop();
    thrift.out
}

// Types of Thrift's compact protocol.
const I32: u8 = 5;
const I64: u8 = 6;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const STRUCT: u8 = 12;

/// Thrift's compact protocol, writing.
#[derive(Debug, Default)]
struct Thrift {
    out: Vec<u8>,
    last: i16,
}

impl Thrift {
    fn varint(&mut self, mut value: u64) {
        while value >= 0x80 {
            self.out.push((value & 0x7f) as u8 | 0x80);
            value >>= 7;
        }
        self.out.push(value as u8);
    }

    fn zigzag(&mut self, value: i64) {
        self.varint(((value << 1) ^ (value >> 63)) as u64);
    }

    fn field(&mut self, id: i16, kind: u8) {
        let delta = id - self.last;
        if (1..=15).contains(&delta) {
            self.out.push((delta as u8) << 4 | kind);
        } else {
            self.out.push(kind);
            self.zigzag(id.into());
        }
        self.last = id;
    }

    fn i32(&mut self, id: i16, value: i32) {
        self.field(id, I32);
        self.zigzag(value.into());
    }

    fn i64(&mut self, id: i16, value: i64) {
        self.field(id, I64);
        self.zigzag(value);
    }

    fn bytes(&mut self, text: &str) {
        self.varint(text.len() as u64);
        self.out.extend_from_slice(text.as_bytes());
    }

    fn text(&mut self, id: i16, text: &str) {
        self.field(id, BINARY);
        self.bytes(text);
    }

    fn list(&mut self, id: i16, kind: u8, length: usize) {
        self.field(id, LIST);
        if length < 15 {
            self.out.push((length as u8) << 4 | kind);
        } else {
            self.out.push(0xf0 | kind);
            self.varint(length as u64);
        }
    }

    fn stop(&mut self) {
        self.out.push(0);
    }

    /// A structure in a list.
    fn element(&mut self, write: impl FnOnce(&mut Thrift)) {
        let outer = std::mem::take(&mut self.last);
        write(self);
        self.stop();
        self.last = outer;
    }

    fn structure(&mut self, id: i16, write: impl FnOnce(&mut Thrift)) {
        self.field(id, STRUCT);
        self.element(write);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn writer() -> Writer {
        let columns = [("name", Column::Text(Vec::new())), ("count", Column::Number(Vec::new()))];
        Writer::new(columns.into_iter().map(|(name, column)| (name.to_owned(), column)))
    }

    #[test]
    fn a_file_begins_and_ends_as_the_format_says() {
        let mut writer = writer();
        assert!(writer.push([Cell::from("a"), Cell::Number(7)].into_iter()).is_none());
        let file = writer.finish();
        assert_eq!((&file[..4], &file[file.len() - 4..]), (&MAGIC[..], &MAGIC[..]));
        let length = u32::from_le_bytes(file[file.len() - 8..file.len() - 4].try_into().unwrap()) as usize;
        // The footer begins with field 1 (version, i32) = 1.
        assert_eq!(file[file.len() - 8 - length..][..2], [0x15, 0x02]);
        // The first page: its header, then the length of "a", then "a".
        let at = file.windows(5).position(|bytes| bytes == [1, 0, 0, 0, b'a']);
        assert!(at.is_some_and(|at| at > 4));
    }

    #[test]
    fn a_full_row_group_is_handed_out_and_the_file_goes_on() {
        let mut writer = writer();
        let mut bytes = Vec::new();
        for row in 0..GROUP + 1 {
            bytes.extend(
                writer.push([Cell::from("x"), Cell::Number(row as i64)].into_iter()).unwrap_or_default(),
            );
        }
        assert!(bytes.starts_with(MAGIC) && bytes.len() > GROUP * 13);
        let rest = writer.finish();
        assert!(!rest.starts_with(MAGIC) && rest.ends_with(MAGIC));
    }
}
