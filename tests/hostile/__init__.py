"""Inputs that are broken, or built to do harm, and what each must lead to."""
