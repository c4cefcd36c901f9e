"""What a guardrail gets right, at what cost, and whether that is more than another's."""
