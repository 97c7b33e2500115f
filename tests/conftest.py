"""Shapes and types written in the networks' signatures are checked while the tests run."""

from jaxtyping import install_import_hook

install_import_hook("cers.nets", "beartype.beartype")
