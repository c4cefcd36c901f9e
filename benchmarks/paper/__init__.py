"""The paper's tables and figures in miniature, on SafeWorld."""
