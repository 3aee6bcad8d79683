"""The paper's eight tasks, answered by generating text: data, prompts, generation that can be killed, scoring."""
