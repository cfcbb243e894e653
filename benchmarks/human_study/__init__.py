"""The paper's human study (sections 4.5 and 5.2): do people see that an image was perturbed?"""
