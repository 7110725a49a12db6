//! Mutations, and the random numbers that choose them: the same seed makes the same inputs.

/// xorshift64* (Vigna, 2016): good enough to choose mutations.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Below `limit`; 0 for 0.
    pub fn below(&mut self, limit: usize) -> usize {
        if limit == 0 { 0 } else { (self.next() >> 16) as usize % limit }
    }

    pub fn pick<'a, T>(&mut self, from: &'a [T]) -> &'a T {
        &from[self.below(from.len())]
    }
}

/// What parsers get wrong: ends of ranges, other spellings, and what has a meaning in some language.
const WORDS: &[&[u8]] = &[
    b"",
    b"0",
    b"-1",
    b"65535",
    b"65536",
    b"4294967296",
    b"1e9",
    b"null",
    b"~",
    b"{}",
    b"[]",
    b"[{}]",
    b"*",
    b"**.",
    b"\"\"",
    b"&a",
    b"*a",
    b"<<: *a",
    b"---\n",
    b"...\n",
    b"!!binary ",
    b"0.0.0.0/0",
    b"::/0",
    b"::ffff:0:0/96",
    b"10.0.0.0/33",
    b"reserved:host",
    b"k8s:",
    b"any:",
    b"\r\n",
    b"\0",
    b"\xff\xfe",
    b"\xf0\x9f\x92\xa3",
    b"\x1b[2J",
    b"%2e%2e/",
    b"%00",
    b"//",
    b"?",
    b"chunked",
    b"Transfer-Encoding: chunked\r\n",
    b"Host: a\r\n",
    b"\r\n\r\n",
    b"\n",
    b"\r",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    b"\x16\x03\x01",
    b"Content-Length: 1",
    b"\x00\x00\x00\x00",
    b"\xff\xff\xff\xff",
    b"\xc0\x0c",
    b"\x2b\x00\x00\x00",
    b"\x2c\x06\x00\x01",
];

/// One change.
pub fn mutate(input: &mut Vec<u8>, seeds: &[Vec<u8>], random: &mut Random) {
    let at = random.below(input.len() + 1);
    let length = random.below(input.len() - at + 1).min(1 + random.below(64));
    match random.below(9) {
        0 if at < input.len() => input[at] ^= 1 << random.below(8),
        1 if at < input.len() => input[at] = random.below(256) as u8,
        2 => drop(input.drain(at..at + length)),
        3 => {
            let copy = input[at..at + length].to_vec();
            let to = random.below(input.len() + 1);
            input.splice(to..to, copy);
        }
        4 => {
            let word = random.pick(WORDS).to_vec();
            input.splice(at..at, word);
        }
        5 => {
            let word = random.pick(WORDS).to_vec();
            input.splice(at..at + length, word);
        }
        6 => {
            let other = random.pick(seeds);
            let from = random.below(other.len() + 1);
            let part = other[from..(from + 1 + random.below(256)).min(other.len())].to_vec();
            input.splice(at..at + length, part);
        }
        7 => input.truncate(at),
        _ => {
            let value = random.below(256) as u8;
            input[at..at + length].fill(value);
        }
    }
}

/// FNV-1a, to name files.
pub fn hash(input: &[u8]) -> u64 {
    input
        .iter()
        .fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3))
}
