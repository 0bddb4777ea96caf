"""Detection on photographs and videos: `files` finds them, `run` detects and draws, `record` keeps what was found."""
