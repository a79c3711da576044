"""The student: its architecture, what it costs, its networks, its bitstreams and its files."""
