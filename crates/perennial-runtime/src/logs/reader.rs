//! Reader.
/// x
#[derive(Debug)]
pub struct LogLine;
/// x
#[derive(Debug)]
pub struct LogReader;
/// x
#[derive(Debug)]
pub struct ReadOptions;
