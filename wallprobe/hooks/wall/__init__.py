"""What needs a task's exact answer: attention, calibration, geometry, temperature."""
