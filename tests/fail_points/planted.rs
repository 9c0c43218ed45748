//! Bugs that only real servers can show, each planted in the program: the tests would notice.
