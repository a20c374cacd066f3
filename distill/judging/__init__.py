"""A judge model's opinion of responses, over the OpenAI-compatible interface."""
