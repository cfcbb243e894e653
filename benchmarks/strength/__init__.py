"""What ``benchmarks.attack_strength`` runs: the shared measurement, and a module for each library's attacks."""
