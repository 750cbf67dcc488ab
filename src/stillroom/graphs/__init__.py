"""Graph neural networks distilled without a teacher: students that teach each other."""
