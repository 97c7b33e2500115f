"""The `cers` command: a command parses, calls one public function and prints."""
