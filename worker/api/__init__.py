"""What a job can ask besides pictures: A1111's other routes, and commands of our own."""
