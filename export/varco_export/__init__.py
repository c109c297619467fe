"""varco-edge export: a LLaVA-OneVision checkpoint becomes a bundle, without torch and without loading it into
memory."""
