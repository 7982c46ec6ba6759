//! Parses a tar archive while its bytes arrive.
//!
//! It supports only what apk's own documents need: plain files with short names. Extended headers (POSIX.1-2017 pax)
//! are skipped like any other entry that is not a file. The archives of a signature and of a package's control part end
//! after the last file, without the blocks of zeros at the end of a complete archive.

use super::broken::Broken;

const BLOCK: usize = 512;

/// Receives the files of an archive.
pub(super) trait Files {
    /// The start of a file.
    fn begin(&mut self, name: &str, size: u64) -> Result<(), Broken>;

    /// The next bytes of the file.
    fn data(&mut self, bytes: &[u8]) -> Result<(), Broken>;

    /// The end of the file.
    fn end(&mut self) -> Result<(), Broken>;

    /// An entry that is not a plain file, such as a link or a header that renames the next entry.
    fn other(&mut self) -> Result<(), Broken> {
        Ok(())
    }
}

enum State {
    /// The number of header bytes read.
    Header(usize),
    Data {
        left: u64,
        padding: u64,
        is_file: bool,
    },
    Padding(u64),
    /// After the blocks of zeros.
    Over,
}

/// Parses an archive that arrives in pieces.
pub(super) struct Tar {
    state: State,
    header: [u8; BLOCK],
}

impl Tar {
    pub(super) fn new() -> Self {
        Self { state: State::Header(0), header: [0; BLOCK] }
    }

    /// Takes the next bytes.
    pub(super) fn update(
        &mut self,
        mut bytes: &[u8],
        files: &mut impl Files,
    ) -> Result<(), Broken> {
        while !bytes.is_empty() {
            match &mut self.state {
                State::Header(filled) => {
                    let space = self.header.get_mut(*filled..).unwrap_or_default();
                    let taken = space.len().min(bytes.len());
                    let (now, rest) = bytes.split_at(taken);
                    for (to, from) in space.iter_mut().zip(now) {
                        *to = *from;
                    }
                    *filled += taken;
                    bytes = rest;
                    if *filled == BLOCK {
                        self.state = self.begin(files)?;
                        self.end_if_done(files)?;
                    }
                }
                State::Data { left, is_file, .. } => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    let (now, rest) = bytes.split_at(taken);
                    if *is_file {
                        files.data(now)?;
                    }
                    *left -= taken as u64;
                    bytes = rest;
                    self.end_if_done(files)?;
                }
                State::Padding(left) => {
                    let taken = usize::try_from(*left).unwrap_or(usize::MAX).min(bytes.len());
                    *left -= taken as u64;
                    bytes = bytes.get(taken..).unwrap_or_default();
                    if *left == 0 {
                        self.state = State::Header(0);
                    }
                }
                State::Over => return Ok(()),
            }
        }
        Ok(())
    }

    /// Whether the archive may end here.
    pub(super) fn finish(&self) -> Result<(), Broken> {
        match self.state {
            State::Header(0) | State::Over => Ok(()),
            State::Header(_) | State::Data { .. } | State::Padding(_) => {
                Err(Broken::form("its tar archive ends within a file"))
            }
        }
    }

    /// Whether the archive was ended by its blocks of zeros.
    pub(super) fn is_over(&self) -> bool {
        matches!(self.state, State::Over)
    }

    /// Parses a complete header.
    fn begin(&self, files: &mut impl Files) -> Result<State, Broken> {
        if self.header.iter().all(|byte| *byte == 0) {
            return Ok(State::Over);
        }
        let sum = octal(self.field(148, 8)).ok_or_else(|| damaged("a checksum"))?;
        let blank = 148..156;
        let real = self
            .header
            .iter()
            .enumerate()
            .map(|(at, byte)| u64::from(if blank.contains(&at) { b' ' } else { *byte }));
        if real.sum::<u64>() != sum {
            return Err(damaged("a checksum"));
        }
        let size = octal(self.field(124, 12)).ok_or_else(|| damaged("a length"))?;
        let is_file = matches!(self.field(156, 1), b"0" | b"\0");
        if is_file {
            files.begin(&self.name()?, size)?;
        } else {
            files.other()?;
        }
        let padding = size.next_multiple_of(BLOCK as u64) - size;
        Ok(State::Data { left: size, padding, is_file })
    }

    fn end_if_done(&mut self, files: &mut impl Files) -> Result<(), Broken> {
        if let State::Data { left: 0, padding, is_file } = self.state {
            if is_file {
                files.end()?;
            }
            self.state = if padding == 0 { State::Header(0) } else { State::Padding(padding) };
        }
        Ok(())
    }

    /// The name in a POSIX.1-2017 ustar header: the prefix, if there is one, then the name. GNU's headers, whose magic
    /// ends in blanks, have times in place of the prefix.
    fn name(&self) -> Result<String, Broken> {
        let text = |bytes| std::str::from_utf8(until_nul(bytes)).map_err(|_| damaged("a name"));
        let name = text(self.field(0, 100))?;
        let prefix =
            if self.field(257, 6) == b"ustar\0" { text(self.field(345, 155))? } else { "" };
        Ok(if prefix.is_empty() { name.to_owned() } else { format!("{prefix}/{name}") })
    }

    fn field(&self, at: usize, length: usize) -> &[u8] {
        self.header.get(at..at + length).unwrap_or_default()
    }
}

fn damaged(what: &str) -> Broken {
    Broken::form(format!("{what} in its tar archive cannot be read"))
}

fn until_nul(field: &[u8]) -> &[u8] {
    field.split(|byte| *byte == 0).next().unwrap_or_default()
}

/// Parses octal digits, surrounded by blanks and NULs. Larger lengths (from 8 GiB) have another encoding, which no apk
/// document needs.
fn octal(field: &[u8]) -> Option<u64> {
    let digits = std::str::from_utf8(until_nul(field)).ok()?.trim_matches(' ');
    if digits.is_empty() || !digits.bytes().all(|digit| matches!(digit, b'0'..=b'7')) {
        return None;
    }
    u64::from_str_radix(digits, 8).ok()
}

#[cfg(test)]
mod tests {
    use super::super::tests::made::{cut_tar, tar};
    use super::*;

    #[derive(Default)]
    struct Seen(Vec<(String, Vec<u8>, bool)>);

    impl Files for Seen {
        fn begin(&mut self, name: &str, _: u64) -> Result<(), Broken> {
            self.0.push((name.to_owned(), Vec::new(), false));
            Ok(())
        }

        fn data(&mut self, bytes: &[u8]) -> Result<(), Broken> {
            self.0.last_mut().unwrap().1.extend(bytes);
            Ok(())
        }

        fn end(&mut self) -> Result<(), Broken> {
            self.0.last_mut().unwrap().2 = true;
            Ok(())
        }
    }

    fn read(archive: &[u8], piece: usize) -> Result<Vec<(String, Vec<u8>)>, Broken> {
        let (mut seen, mut tar) = (Seen::default(), Tar::new());
        for piece in archive.chunks(piece) {
            tar.update(piece, &mut seen)?;
        }
        tar.finish()?;
        assert!(seen.0.iter().all(|(_, _, ended)| *ended));
        Ok(seen.0.into_iter().map(|(name, data, _)| (name, data)).collect())
    }

    #[test]
    fn files_are_found_however_the_bytes_come() {
        let files: [(&str, &[u8]); 3] = [("a", b""), ("b", &[1; 512]), ("c", b"three")];
        let expected: Vec<(String, Vec<u8>)> =
            files.iter().map(|(name, data)| ((*name).to_owned(), data.to_vec())).collect();
        let cut = cut_tar(&files);
        for archive in [&tar(&files), &cut] {
            for piece in [1, 511, 512, 513, 100_000] {
                assert_eq!(read(archive, piece).unwrap(), expected, "{piece}");
            }
            for end in [1, 600, cut.len() - 1] {
                assert!(read(&archive[..end], 64).is_err(), "{end}");
            }
        }
    }

    #[test]
    fn a_damaged_header_ends_the_archive() {
        let whole = cut_tar(&[("name", b"data")]);
        assert!(read(&whole, 64).is_ok());
        for at in [0, 124, 148, 156, 300] {
            let mut damaged = whole.clone();
            damaged[at] ^= 1;
            assert!(read(&damaged, 64).is_err(), "{at}");
        }
    }
}
