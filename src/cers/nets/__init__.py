"""Networks: tensors in, tensors out. No configuration, no files, no devices."""
