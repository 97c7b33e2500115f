"""Have a language model write rationales: plan what it costs, ask, keep every answer."""
