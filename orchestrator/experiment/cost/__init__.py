"""What a plan costs, and how far a budget reaches: which trainings, and which further seeds."""
