"""Whether records may stand on a shared board: a submission check in the spirit of MLPerf's."""
