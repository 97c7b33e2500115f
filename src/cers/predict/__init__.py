"""From a trained run and cases to masks with their evidence."""
