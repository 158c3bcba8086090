"""What `experiments.check_evaluation` computes: one module for each family of cases."""
